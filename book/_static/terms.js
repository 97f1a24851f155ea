// The definition of a word of the glossary, in a card: while the pointer, the focus or a finger is on its link.
// The first tap shows it, the second follows the link; Escape closes it. It lies above the page and moves nothing.
(() => {
  "use strict";

  const links = document.querySelectorAll("a.defined");
  if (!links.length) return;
  const { html } = window.thinkback; // of dom.js
  const word = html("b");
  const meaning = html("span");
  const hint = html("small", {}, "Tap the word again for the glossary.");
  const card = html("div", { id: "definition", role: "tooltip", hidden: "" }, word, meaning, hint);
  document.body.append(card);
  const MARGIN = 8;
  let shown = null;
  let leaving;

  function hide() {
    clearTimeout(leaving);
    shown?.removeAttribute("aria-describedby");
    shown = null;
    card.hidden = true;
  }

  /** Under that part of the link at which the pointer is, or above it where the window ends. */
  function show(link, { clientX, clientY } = {}, touched = false) {
    clearTimeout(leaving);
    if (shown === link) return;
    hide();
    shown = link;
    const name = link.textContent;
    word.textContent = name[0].toUpperCase() + name.slice(1);
    meaning.textContent = link.dataset.definition;
    hint.hidden = !touched;
    card.hidden = false;
    link.setAttribute("aria-describedby", card.id);
    const lines = [...link.getClientRects()];
    const at = lines.find((box) => clientY >= box.top && clientY <= box.bottom && clientX <= box.right) ?? lines[0];
    const { clientWidth, clientHeight } = document.documentElement;
    const left = Math.max(MARGIN, Math.min(at.left, clientWidth - card.offsetWidth - MARGIN));
    const below = at.bottom + MARGIN / 2;
    const above = at.top - MARGIN / 2 - card.offsetHeight;
    const top = below + card.offsetHeight > clientHeight && above > 0 ? above : below;
    card.style.left = `${left + scrollX}px`;
    card.style.top = `${top + scrollY}px`;
  }

  const leave = () => {
    clearTimeout(leaving);
    leaving = setTimeout(hide, 250); // time to move the pointer onto the card
  };

  for (const link of links) {
    link.dataset.definition = link.title; // without this script the browser shows the title
    link.removeAttribute("title");
    let first = false;
    link.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && show(link, event));
    link.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && leave());
    link.addEventListener("focus", () => link.matches(":focus-visible") && show(link));
    link.addEventListener("blur", hide);
    link.addEventListener("pointerdown", (event) => {
      first = event.pointerType === "touch" && shown !== link;
    });
    link.addEventListener("click", (event) => {
      if (!first) return;
      event.preventDefault();
      first = false;
      shown = null;
      show(link, event, true);
    });
  }
  card.addEventListener("pointerenter", () => clearTimeout(leaving));
  card.addEventListener("pointerleave", leave);
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
  addEventListener("pointerdown", (event) => {
    if (shown && !shown.contains(event.target) && !card.contains(event.target)) hide();
  });
  addEventListener("resize", hide);
})();
