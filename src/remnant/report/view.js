// Asks every two seconds what has changed, and puts only that in its place.
const main = document.querySelector("main");
const told = document.querySelector("#told");

async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/now", { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      put(new DOMParser().parseFromString(await answer.text(), "text/html").body);
      told.textContent = "";
    } catch {
      told.textContent = "No answer: remnant view has ended, or is busy. What you see may be old.";
    }
  }
  setTimeout(look, 2000);
}

function put(fresh) {
  const ids = [...fresh.children].map((part) => part.id);
  const same = ids.join() === [...main.children].map((part) => part.id).join();
  if (!same) return main.replaceChildren(...fresh.children);
  for (const part of [...fresh.children]) {
    const old = document.getElementById(part.id);
    if (!old.isEqualNode(part)) old.replaceWith(part);
  }
}

setTimeout(look, 2000);
