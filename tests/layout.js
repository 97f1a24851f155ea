// What tests/test_pages_layout.py asks of a page: is everything there, whole, and large enough to be read?
{
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length > 0;
  const named = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") ?? ""} ${e.textContent.trim().slice(0, 50)}`;
  const LEAST = 10; // pixels of the smallest text

  // Where a box hides a part of what it holds: always where it cannot scroll, on a desk where it must.
  const cut = (desk) =>
    all("article :is(.katex-display, pre, table, figure, .cell_output, .tb-explorer, [class*=container])")
      .filter(shown)
      .filter((e) => e.scrollWidth > e.clientWidth + 1)
      .filter((e) => desk || !/auto|scroll|visible/.test(getComputedStyle(e).overflowX))
      .map((e) => [named(e), e.scrollWidth, e.clientWidth]);

  // Formulas with a sign that sticks out above or below the box that shows it.
  const clipped = () =>
    all("article .katex-display")
      .filter((e) => shown(e) && getComputedStyle(e).overflowY !== "visible")
      .filter((e) => {
        const box = e.getBoundingClientRect();
        const signs = [...e.querySelectorAll(".katex-html :is(.mord, .mop, .mbin, .mrel, .mopen, .mclose, .mpunct)")].map((c) => c.getBoundingClientRect());
        return signs.some(({ top, bottom }) => top < box.top - 1 || bottom > box.bottom + 1);
      })
      .map((e) => e.querySelector("annotation").textContent.slice(0, 60));

  const smallText = () => {
    const found = new Map();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const e = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || e.closest("script, style, noscript, .katex") || !shown(e)) continue;
      const to = e.ownerSVGElement && e.getScreenCTM();
      const size = Number.parseFloat(getComputedStyle(e).fontSize) * (to ? Math.hypot(to.a, to.b) : 1);
      if (size < LEAST - 0.05) found.set(named(e), size.toFixed(1));
    }
    return [...found];
  };

  // The SVG of an image in a document of its own, and its scale on the page; paint() gives it the colours of a theme.
  const inlined = async (image) => {
    const frame = document.createElement("iframe");
    frame.style.cssText = "position: fixed; border: 0; width: 1200px; height: 1200px; visibility: hidden";
    document.body.append(frame);
    const source = await (await fetch(image.currentSrc)).text();
    const svg = new DOMParser().parseFromString(source, "image/svg+xml").documentElement;
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    frame.contentDocument.body.style.margin = 0;
    frame.contentDocument.body.append(svg);
    const styles = [...svg.querySelectorAll("style")].map((style) => [style, style.textContent]);
    const dark = /@media \(prefers-color-scheme:\s*dark\)\s*\{((?:[^{}]|\{[^{}]*\})*)\}/g;
    const paint = (theme) => {
      for (const [style, text] of styles) style.textContent = text.replace(dark, theme === "dark" ? "$1" : "");
    };
    return { frame, svg, width, height, paint, scale: image.clientWidth / width };
  };

  const pixels = async ({ svg, width, height }, color) => {
    const copy = svg.cloneNode(true);
    for (const text of copy.querySelectorAll("g[id^=text_], text")) text.remove();
    const image = new Image();
    image.src = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = color;
    context.fillRect(0, 0, width, height);
    context.drawImage(image, 0, 0, width, height);
    URL.revokeObjectURL(image.src);
    return context;
  };

  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (rgb) =>
    rgb
      .slice(0, 3)
      .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];

  const paper = (theme) => {
    const root = document.documentElement;
    const before = root.dataset.theme;
    root.dataset.theme = theme;
    const color = getComputedStyle(document.body).backgroundColor;
    root.dataset.theme = before;
    return color;
  };

  // What most of a place shows, as red, green and blue.
  const behind = (context, [x, y, width, height]) => {
    const { data } = context.getImageData(x, y, Math.max(width, 1), Math.max(height, 1));
    const step = Math.max(1, Math.floor(data.length / 4 / 400)); // some 400 points of it
    const points = Array.from({ length: Math.floor(data.length / 4 / step) }, (_, i) => 4 * step * i);
    return [0, 1, 2].map((channel) => middle(points.map((i) => data[i + channel])));
  };

  // Words of a drawing without enough contrast in a theme.
  const faint = async (drawing, words, theme) => {
    drawing.paint(theme);
    const ground = await pixels(drawing, paper(theme));
    const origin = drawing.svg.getBoundingClientRect();
    return words.flatMap((word, place) => {
      const box = word.getBoundingClientRect();
      if (!box.width || !box.height) return [];
      const place4 = [box.x - origin.x, box.y - origin.y, box.width, box.height].map(Math.round);
      const below = behind(ground, place4);
      const style = getComputedStyle(word.querySelector("use, path, tspan") ?? word);
      const alpha = Number(style.fillOpacity) * Number(getComputedStyle(word).opacity);
      const ink = numbers(style.fill).slice(0, 3);
      const ratio = contrast(ink.map((c, i) => alpha * c + (1 - alpha) * below[i]), below);
      const said = `${ratio.toFixed(2)}:1, ${style.fill} on ${below}, ${theme}`;
      return ratio < 4.5 ? [[`text ${place + 1}`, said]] : [];
    });
  };

  // Words of the drawings that a page holds itself, without enough contrast in a theme; "behind" them is what is painted there.
  const faintInline = (theme) => {
    const root = document.documentElement;
    const style = document.createElement("style");
    style.textContent = "* { pointer-events: auto !important; transition: none !important; scroll-behavior: auto !important }";
    document.head.append(style);
    const before = root.dataset.theme;
    root.dataset.theme = theme;
    const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
    const color = (layers) => {
      for (const [paint, alpha] of layers) {
        context.globalAlpha = alpha;
        context.fillStyle = paint;
        context.fillRect(0, 0, 1, 1);
      }
      return [...context.getImageData(0, 0, 1, 1).data];
    };
    const opacity = (e) => (e ? Number(getComputedStyle(e).opacity) * opacity(e.parentElement) : 1);
    const layer = (e) => {
      const look = getComputedStyle(e);
      if (!(e instanceof SVGGeometryElement)) return e.ownerSVGElement ? [] : [[look.backgroundColor, opacity(e)]];
      const kinds = [["fill", look.fillOpacity], ["stroke", look.strokeOpacity]].filter(([kind]) => look[kind] !== "none");
      return kinds.slice(0, 1).map(([kind, alpha]) => [look[kind], alpha * opacity(e)]);
    };
    const found = all("article svg text").filter((e) => shown(e) && e.textContent.trim()).flatMap((word) => {
      word.scrollIntoView({ block: "center" });
      const box = word.getBoundingClientRect();
      const there = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2).filter((e) => !word.contains(e));
      const look = getComputedStyle(word);
      const halo = look.paintOrder.startsWith("stroke") && look.stroke !== "none" ? [[look.stroke, look.strokeOpacity]] : [];
      const below = [...there.reverse().flatMap(layer), ...halo];
      const [ground, ink] = [color(below), color([...below, [look.fill, look.fillOpacity * opacity(word)]])];
      const ratio = contrast(ground, ink);
      return ratio < 4.5 ? [[named(word), `${ratio.toFixed(2)}:1, ${ink} on ${ground}, ${theme}`]] : [];
    });
    root.dataset.theme = before;
    style.remove();
    return found;
  };

  // Of the words of each drawing: those that are too small as shown, and those without contrast in a theme.
  const drawnText = async (wide) => {
    const faults = wide ? [...faintInline("light"), ...faintInline("dark")] : [];
    for (const image of all("article img").filter((e) => shown(e) && /\.svg(?:$|\?)/.test(e.currentSrc))) {
      const drawing = await inlined(image);
      const words = [...drawing.svg.querySelectorAll("g[id^=text_], text")];
      const name = `${image.alt.slice(0, 40)}… (${image.currentSrc.split("/").pop().slice(0, 8)})`;
      const small = words.flatMap((word, place) => {
        const outlines = [...word.querySelectorAll("g[transform*=scale]")].map((g) => g.getAttribute("transform"));
        const em = outlines.map((text) => 100 * Number(text.match(/scale\(([\d.]+)/)?.[1] ?? 1));
        const size = drawing.scale * (em.length ? Math.max(...em) : Number.parseFloat(getComputedStyle(word).fontSize));
        return size < LEAST - 0.05 ? [[`text ${place + 1}`, `${size.toFixed(1)} px`]] : [];
      });
      const looked = wide || image.closest("picture"); // a phone shows most drawings of a desk
      const unread = looked && words.length
        ? [...(await faint(drawing, words, "light")), ...(await faint(drawing, words, "dark"))]
        : [];
      if (small.length + unread.length) faults.push([name, ...small.slice(0, 3), ...unread.slice(0, 6)]);
      drawing.frame.remove();
    }
    return faults;
  };

  // How far down the middle of the answer figure is, the first of a chapter; null on a page without one.
  const answer = () => {
    const figure = all("article :is(figure img, .tb-explorer)").find(shown);
    const box = figure?.getBoundingClientRect();
    return box ? Math.round(scrollY + box.top + box.height / 2) : null;
  };

  // What moves when a control of the page is used.
  const moves = async () => {
    const height = () => document.querySelector("article")?.scrollHeight;
    const turn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const found = [];
    const fire = (e, kinds) => kinds.forEach((kind) => e.dispatchEvent(new Event(kind, { bubbles: true })));
    const steps = (e) => {
      if (e.matches("select")) return [...e.options].map((_, i) => () => (e.selectedIndex = i));
      if (e.type === "range") return [e.min, (Number(e.min) + Number(e.max)) / 2, e.max].map((v) => () => (e.value = v));
      return [() => e.click()];
    };
    const controls = "article :is(select, input[type=range], input[type=radio], button[aria-pressed])";
    for (const control of all(controls).filter((e) => shown(e) && !e.disabled && !e.closest(".tb-demo, .sd-tab-set"))) {
      const [before, at] = [height(), control.value];
      for (const step of steps(control).slice(0, 12)) {
        step();
        fire(control, ["input", "change"]);
        await turn();
        const after = height();
        if (Math.abs(after - before) > 1) found.push([named(control), after - before]);
      }
      if (control.matches("select, [type=range]")) {
        control.value = at;
        fire(control, ["input", "change"]);
      }
    }
    return found;
  };

  // Families of letters that words ask for, and those that are there.
  const letters = () => {
    const words = "article :is(h1, h2, h3, p, li, td, th, code, pre, figcaption, summary), nav a, button, input, select";
    const used = all(words).filter((e) => shown(e) && !e.closest(".katex"));
    const families = used.map((e) => getComputedStyle(e).fontFamily.split(",")[0]);
    const ready = [...document.fonts].filter((font) => font.status === "loaded").map((font) => font.family);
    return [families, ready].map((names) => [...new Set(names.map((name) => name.replaceAll('"', "")))]);
  };

  window.layout = { cut, clipped, smallText, drawnText, answer, moves, letters };
}
