// A drawn tree's behaviour: figures under the pointer and the focus, a chosen path, folds, zoom, fusion.
"use strict";

document.querySelectorAll(".tree").forEach((section) => {
  const svg = section.querySelector(".drawing"), sheet = section.querySelector(".sheet");
  const numbers = (name) => svg.dataset[name].split(" ").map(Number);
  const [x, foldedX] = [numbers("x"), numbers("folded")];
  const [row, top, margin] = ["row", "top", "margin"].map((name) => Number(svg.dataset[name]));
  const nodes = [...svg.querySelectorAll(".node")].map((place) => ({
    place, parent: Number(place.dataset.p), depth: Number(place.dataset.d), children: [], folded: false, hidden: false, y: 0,
    facts: place.getAttribute("aria-label").split(" · "),
  }));
  svg.querySelectorAll(".edge").forEach((edge) => (nodes[edge.dataset.n].edge = edge));
  nodes.forEach((node, n) => node.parent >= 0 && nodes[node.parent].children.push(n));
  const depths = x.length, splitDepths = new Set(nodes.filter((one) => one.children.length > 1).map((one) => one.depth));
  let zoom = 1, size = [svg.width.baseVal.value, svg.height.baseVal.value];

  const parts = (n) => (n < 0 ? [] : [nodes[n].place, nodes[n].edge].filter(Boolean));
  const path = (n) => (n < 0 ? [] : [...path(nodes[n].parent), n]);
  const leafCount = (n) => nodes[n].children.reduce((sum, child) => sum + leafCount(child), 0) || 1;
  const fact = (n, name) => nodes[n].facts.find((one) => one.startsWith(`${name} `))?.slice(name.length + 1);

  // Places, after something was folded ------------------------------------------------------------------------------

  function lay() {
    const flat = section.querySelector("[data-tree=fold]").checked, at = flat ? foldedX : x;
    let rows = 0;
    const visit = (n, hidden) => {
      const node = nodes[n], ends = node.folded || !node.children.length;
      node.hidden = hidden;
      node.children.forEach((child) => visit(child, hidden || node.folded));
      if (hidden) return;
      node.y = ends ? top + row * (rows++ + 0.5) : node.children.reduce((sum, child) => sum + nodes[child].y, 0) / node.children.length;
    };
    nodes.forEach((node, n) => node.parent < 0 && visit(n, false));
    const height = top + row * rows + row / 2, width = at[depths - 1] + margin, r = (value) => value.toFixed(1);
    nodes.forEach((node, n) => {
      node.place.style.display = node.hidden ? "none" : "";
      node.place.setAttribute("transform", `translate(${r(at[node.depth])} ${r(node.y)})`);
      const note = node.place.querySelector(".folds");
      if (note) {
        note.textContent = node.folded ? `▸ ${leafCount(n)} leaves, value ${fact(n, "value")}` : "";
        node.place.setAttribute("aria-expanded", !node.folded);
      }
      if (!node.edge) return;
      const [x0, y0, x1, y1] = [at[node.depth - 1], nodes[node.parent].y, at[node.depth], node.y], middle = (x0 + x1) / 2;
      node.edge.style.display = node.hidden ? "none" : "";
      const d = `M${r(x0)} ${r(y0)}C${r(middle)} ${r(y0)} ${r(middle)} ${r(y1)} ${r(x1)} ${r(y1)}`;
      node.edge.querySelectorAll(".near, .line").forEach((line) => line.setAttribute("d", d));
      node.edge.querySelector(".mark")?.setAttribute("transform", `translate(${r(middle)} ${r((y0 + y1) / 2)})`);
    });
    svg.querySelectorAll("[data-tick]").forEach((tick) => {
      const depth = Number(tick.dataset.tick);
      tick.setAttribute("transform", `translate(${r(at[depth])} 0)`);
      tick.querySelector("line").setAttribute("y2", r(height));
      tick.classList.toggle("inner", !splitDepths.has(depth) && depth !== depths - 1);
    });
    svg.querySelector(".titles").setAttribute("transform", `translate(${r(at[depths - 1])} 0)`);
    svg.classList.toggle("folded", flat);
    size = [width, height];
    svg.setAttribute("viewBox", `0 0 ${r(width)} ${r(height)}`);
    scale(zoom);
  }

  function scale(to) {
    zoom = Math.min(Math.max(to, 0.1), 4);
    svg.setAttribute("width", (zoom * size[0]).toFixed(1));
    svg.setAttribute("height", (zoom * size[1]).toFixed(1));
  }

  // Figures and the chosen path -------------------------------------------------------------------------------------

  const chosen = () => Number(svg.dataset.chosen ?? svg.dataset.best);

  function show(n) {
    svg.querySelectorAll(".at").forEach((part) => part.classList.remove("at"));
    parts(n).forEach((part) => part.classList.add("at"));
    section.querySelector(".node-facts").replaceChildren(...nodes[n].facts.map((text) => {
      const cut = /^(.+) ([−+]?[\d.]\S*|–)$/.exec(text), box = document.createElement("div");
      const [name, value] = ["dt", "dd"].map((tag) => document.createElement(tag));
      [name.textContent, value.textContent] = cut ? [cut[1], cut[2]] : ["\u00a0", text];
      box.append(name, value);
      return box;
    }));
  }

  function choose(leaf) {
    svg.dataset.chosen = leaf;
    svg.classList.add("chosen");
    const on = path(leaf);
    svg.querySelectorAll(".on").forEach((part) => part.classList.remove("on"));
    on.flatMap(parts).forEach((part) => part.classList.add("on"));
    section.querySelector(".path").replaceChildren(...on.flatMap((n) => {
      const image = nodes[n].place.querySelector("image");
      if (!image) return [];
      const item = document.createElement("li"), value = document.createElement("b"), plays = nodes[n].place.dataset.plays;
      const picture = document.createElement(plays ? "video" : "img"), seen = image.getAttribute("href");
      if (plays) Object.assign(picture, { poster: seen, src: plays, controls: true, loop: true, preload: "none", ariaLabel: nodes[n].facts[0] });
      else Object.assign(picture, { src: seen, alt: nodes[n].facts[1] });
      value.textContent = `value ${fact(n, "value")}`;
      item.append(picture, `${nodes[n].facts[1]} · `, value);
      return [item];
    }));
  }

  const player = () => section.querySelector(".path video");

  function act(n) {
    if (!nodes[n].children.length) {
      if (n === chosen() && player()?.paused === false) return player().pause();
      choose(n);
      player()?.play().catch(() => {}); // another leaf is chosen before it has begun
    } else if (nodes[n].children.length > 1) {
      nodes[n].folded = !nodes[n].folded;
      lay();
    }
  }

  function go(n, key) {
    const at = (other) => nodes[other] && nodes[other].depth === nodes[n].depth;
    const near = (by) => {
      let other = n + by;
      while (at(other) && nodes[other].hidden) other += by;
      return at(other) ? other : n;
    };
    const to = { ArrowLeft: () => nodes[n].parent, ArrowRight: () => nodes[n].children[0], ArrowUp: () => near(-1), ArrowDown: () => near(1) };
    const next = to[key]() ?? n;
    if (next < 0 || nodes[next].hidden) return;
    nodes[next].place.focus();
  }

  const under = (event) => event.target.closest?.("[data-n]")?.dataset.n;
  svg.addEventListener("pointerover", (event) => under(event) && show(Number(under(event))));
  svg.addEventListener("focusin", (event) => {
    if (!under(event)) return;
    nodes.forEach((node, n) => node.place.setAttribute("tabindex", n === Number(under(event)) ? "0" : "-1"));
    show(Number(under(event)));
  });
  svg.addEventListener("click", (event) => under(event) && act(Number(under(event))));
  svg.addEventListener("keydown", (event) => {
    const n = Number(under(event));
    if (event.key === "Enter" || event.key === " ") act(n);
    else if (event.key.startsWith("Arrow")) go(n, event.key);
    else return;
    event.preventDefault();
  });
  section.addEventListener("change", (event) => {
    if (event.target.dataset.tree === "fold") lay();
    if (event.target.dataset.tree === "fusion") section.classList.toggle("fusion", event.target.checked);
  });
  section.addEventListener("click", (event) => {
    const what = event.target.dataset?.tree;
    if (what === "in" || what === "out") scale(zoom * (what === "in" ? 1.25 : 0.8));
    if (what === "fit") scale(Math.min(sheet.clientWidth / size[0], (0.86 * innerHeight) / size[1]));
  });
  choose(chosen());
  show(chosen());
  sheet.scrollTop = nodes[chosen()].y - sheet.clientHeight / 2;
});
