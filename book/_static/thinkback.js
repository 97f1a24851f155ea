// What scrolls sideways can be reached by keyboard: the theme sees to that for code alone.
const reach = () => {
  const boxes = ".cell_output, .pst-scrollable-table-container, mjx-container[display]";
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("load", () => {
  reach();
  window.MathJax?.startup?.promise.then(reach);
});
addEventListener("resize", reach);
addEventListener("toggle", reach, true); // an opened <details> may hold a table
