// Elements in one expression, for the scripts of this book: html("b", { class: "x", onclick: f }, "text"), svg("g").
const maker = (create) => (tag, attributes = {}, ...children) => {
  const node = create(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};

/** Brings words that stick out of a drawing of this width back into it: how wide they are depends on the fonts. */
const fit = (drawing, width) => {
  for (const words of drawing.querySelectorAll("text")) {
    const box = words.getBBox();
    if (box.width > width) {
      words.setAttribute("textLength", width);
      words.setAttribute("lengthAdjust", "spacingAndGlyphs");
    }
    const { x, width: own } = words.getBBox();
    const out = Math.max(-x, 0) || Math.min(width - x - own, 0);
    if (out) words.setAttribute("dx", out);
  }
};

window.thinkback = {
  fit,
  html: maker((tag) => document.createElement(tag)),
  svg: maker((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag)),
};
