"use strict";
// Show the samples of one kind, and those that hold a text.
const cards = [...document.querySelectorAll("article")];
const buttons = [...document.querySelectorAll("nav button")];
const search = document.querySelector("nav input");
const none = document.querySelector(".none");
let kind = "";

function show() {
  const wanted = search.value.trim().toLowerCase();
  let count = 0;
  for (const card of cards) {
    const fits = (!kind || card.dataset.kind === kind) && (!wanted || card.textContent.toLowerCase().includes(wanted));
    card.hidden = !fits;
    count += fits;
  }
  none.hidden = count > 0;
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    kind = button.dataset.kind;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    show();
  });
}
search.addEventListener("input", show);
