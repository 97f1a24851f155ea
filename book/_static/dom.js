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
window.thinkback = {
  html: maker((tag) => document.createElement(tag)),
  svg: maker((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag)),
};
