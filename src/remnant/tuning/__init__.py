"""The settings of many methods, searched by the same number of trials."""
