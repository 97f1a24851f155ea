const all = (selector) => [...document.querySelectorAll(selector)];

// What scrolls sideways can be reached by keyboard: the theme sees to that for code alone, and late.
const reach = () => {
  for (const box of all(".cell_output, .pst-scrollable-table-container, .katex-display, article :is(figure, pre)")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};

// A formula that is wider than its column becomes smaller, down to two thirds; what is wider still scrolls.
const shrink = () => {
  for (const box of all("article .katex-display")) {
    box.style.fontSize = "";
    const over = box.scrollWidth / box.clientWidth;
    if (over <= 1) continue;
    const size = Number.parseFloat(getComputedStyle(box).fontSize);
    box.style.fontSize = `${Math.max(0.99 / over, 0.67) * size}px`;
  }
};

const measure = () => {
  shrink();
  reach();
};
addEventListener("load", () => {
  measure();
  document.fonts.ready.then(measure); // those of formulas, too
});
addEventListener("resize", measure);
addEventListener("toggle", measure, true); // an opened <details> may hold a table

// One switch for all code of a page, remembered.
const CODE = "thinkback-code";
document.documentElement.dataset.code = localStorage.getItem(CODE) ?? "shown"; // before the page is drawn
const showCode = (shown, button) => {
  document.documentElement.dataset.code = shown ? "shown" : "hidden";
  button.textContent = shown ? "Hide code" : "Show code";
  button.setAttribute("aria-pressed", !shown);
  measure();
};
addEventListener("DOMContentLoaded", () => {
  const buttons = document.querySelector(".article-header-buttons");
  if (!buttons || !document.querySelector("article .cell_input")) return;
  const button = document.createElement("button");
  button.className = "tb-code";
  button.type = "button";
  button.title = "Show or hide all code of the book's pages";
  button.addEventListener("click", () => {
    const shown = document.documentElement.dataset.code === "hidden";
    localStorage.setItem(CODE, shown ? "shown" : "hidden");
    showCode(shown, button);
  });
  buttons.prepend(button);
  showCode(document.documentElement.dataset.code !== "hidden", button);
});

// Paper cannot be unfolded. Folded code is left out there: thinkback.css.
let opened = [];
addEventListener("beforeprint", () => {
  opened = all("article details:not([open], .above-input)");
  for (const fold of opened) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of opened) fold.open = false;
});
