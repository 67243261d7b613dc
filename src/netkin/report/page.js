"use strict";
// Tables that sort, commands to copy, and matrices with the numbers of a cell, an order and a table
// of pairs. Nothing is loaded; without this file the page is complete but still.

const UNKNOWN = "–", MINUS = "−";
const number = (x, digits) => x == null ? UNKNOWN : x.toFixed(digits).replace("-", MINUS);
const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// A click on a header sorts: numbers descending, words a to z; a second click reverses it.
function headers(table, sort) {
  const cells = [...table.tHead.rows[0].cells];
  cells.forEach((cell, column) => cell.querySelector("button").addEventListener("click", () => {
    const numeric = cell.classList.contains("n"), was = cell.getAttribute("aria-sort");
    const up = was ? was === "descending" : !numeric;
    cells.forEach((other) => other.removeAttribute("aria-sort"));
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    sort(column, up, numeric);
  }));
}

// Compares two values of a column; unknown ones come last.
function compare(x, y, up) {
  if (typeof x === "string") return (up ? 1 : -1) * x.localeCompare(y);
  const [noX, noY] = [x == null || Number.isNaN(x), y == null || Number.isNaN(y)];
  return noX || noY ? noX - noY : (up ? 1 : -1) * (x - y);
}

for (const table of document.querySelectorAll("table.sortable")) {
  headers(table, (column, up, numeric) => {
    const key = (row) => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
      return numeric ? Number.parseFloat(text) : text;
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b), up));
    table.tBodies[0].append(...rows);
  });
}

// What scrolls can be scrolled by keyboard, too.
function focusable() {
  for (const box of document.querySelectorAll(".scroll, pre")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    box.toggleAttribute("tabindex", scrolls);
    if (scrolls) box.tabIndex = 0;
  }
}
addEventListener("resize", focusable);

// A contents list is of use where a page is longer than three screens.
const contents = document.querySelector("nav");
if (contents) contents.hidden = document.documentElement.scrollHeight <= 3 * innerHeight;

for (const block of document.querySelectorAll("pre.command")) {
  const button = element("button", {type: "button", textContent: "Copy"});
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(block.firstElementChild);
    try {
      await navigator.clipboard.writeText(block.firstElementChild.textContent);
      button.textContent = "Copied";
    } catch {  // not allowed here: it is selected
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
  });
  block.append(button);
}

for (const root of document.querySelectorAll(".matrix")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const matrix = interactive(root, data);
  matrix.onmodel = pairTable(root, data, matrix);
  root.querySelector(".tools").hidden = false;
}
focusable();

// The value of a column for a pair of models, A first, and its text. Columns hold each pair once,
// with the model that is listed first as A.
function valueOf(data, column, a, b) {
  const {values, ends, other} = a < b ? column : {...column, ...data.columns[column.other]};
  const at = Math.max(a, b) * (Math.max(a, b) - 1) / 2 + Math.min(a, b), value = values[at];
  if (value == null) return [null, UNKNOWN];
  return [typeof value === "boolean" ? Number(value) : value, {
    number: () => number(value, 2),
    range: () => `${number(value, 2)} to ${number(ends[at], 2)}`,
    count: () => value.toLocaleString("en"),
    rate: () => number(100 * value, 1) + "%",
    flag: () => value ? "yes" : "no",
  }[column.kind]()];
}

// The figure: pointing, tapping and arrow keys show a cell; returns what the table needs of it.
function interactive(root, data) {
  const {names, axes} = data, n = names.length, [left, top, right, bottom] = axes.cells;
  const plot = root.querySelector(".plot"), image = plot.querySelector("img");
  const tip = root.querySelector(".tip"), select = root.querySelector(".order");
  const boxes = ["cursor", "model row", "model column"].map((name) => plot.appendChild(element("div", {className: name, hidden: true})));
  let order = data.order, at = null, model = null;  // order: models by place; at: [row, column]
  const self = {onmodel: () => {}, select: choose};
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-label", "Arrow keys move between cells; Enter shows the pairs of a model, Escape those of all.");

  // Puts a box over some cells, in shares of the picture.
  function cover(box, row, column, rows, columns) {
    const [height, width] = [(bottom - top) / n, (right - left) / n];
    const edges = {left: left + column * width, top: top + row * height, width: columns * width, height: rows * height};
    for (const edge in edges) box.style[edge] = `${100 * edges[edge]}%`;
    box.hidden = false;
  }

  function show(place) {
    at = place;
    tip.hidden = boxes[0].hidden = !place;
    if (!place) return;
    cover(boxes[0], place[0], place[1], 1, 1);
    const [i, j] = place.map((k) => order[k]), [a, b] = i < j ? [i, j] : [j, i];
    const named = (title) => title.replace(/\bA\b/, names[a]).replace(/\bB\b/, names[b]);
    const lines = i === j ? [`${names[i]} with itself`, data.diagonal[i] ?? ""] : [`${names[a]} and ${names[b]}`].concat(
      data.columns.map((column) => [column, ...valueOf(data, column, a, b)]).filter(([, value]) => value != null)
        .map(([column, , text]) => `${named(column.title)}: ${text}`));
    tip.replaceChildren(...lines.map((text, k) => element(k ? "div" : "b", {textContent: text})));
    // Beside the cell, on the side where there is room.
    const cell = boxes[0].getBoundingClientRect(), frame = root.getBoundingClientRect(), width = tip.offsetWidth;
    const beside = cell.right - frame.left + 10, fits = beside + width <= frame.width;
    tip.style.left = `${Math.max(0, fits ? beside : Math.min(cell.left - frame.left - width - 10, frame.width - width))}px`;
    tip.style.top = `${cell.bottom - frame.top + (fits || cell.left - frame.left > width + 10 ? -20 : 10)}px`;
  }

  function choose(chosen) {
    model = chosen;
    boxes.slice(1).forEach((box) => { box.hidden = true; });
    if (chosen == null) return;
    const k = order.indexOf(chosen);
    cover(boxes[1], k, 0, 1, n);
    cover(boxes[2], 0, k, n, 1);
  }

  // Another order of the same picture: its cells and names are copied to where they belong.
  function arrange(by) {
    order = data.orders[by];
    plot.querySelector("canvas")?.remove();
    image.hidden = false;
    if (by !== "clusters") {
      const [width, height] = [image.naturalWidth, image.naturalHeight];
      const canvas = element("canvas", {width, height}), pen = canvas.getContext("2d");
      const x = (k) => Math.round(width * (left + k * (right - left) / n));
      const y = (k) => Math.round(height * (top + k * (bottom - top) / n));
      const edge = Math.round(width * (axes.strip ?? axes.cells)[0]);
      const [, , namesRight, namesBottom] = axes["cells+names"];
      const [x1, y1] = [Math.round(width * namesRight), Math.round(height * namesBottom)];
      // A cell is copied without its outermost pixels, where the frame of a cluster may be.
      const wide = (x(n) - x(0)) / n, frame = Math.min(4, Math.floor(wide / 3)), gap = wide > 30 ? 1 : 0;
      const copy = (sx, sy, sx1, sy1, dx, dy, dx1, dy1, off = 0, to = 0) => pen.drawImage(image,
        sx + off, sy + off, sx1 - sx - 2 * off, sy1 - sy - 2 * off, dx + to, dy + to, dx1 - dx - 2 * to, dy1 - dy - 2 * to);
      pen.drawImage(image, 0, 0);
      pen.fillStyle = "#fff";
      pen.fillRect(0, y(0) - 4, edge, y1 - y(0) + 4);  // the dendrogram, or clusters, of the other order
      pen.fillRect(x(0) - 4, y(0) - 4, x(n) - x(0) + 8, y(n) - y(0) + 8);
      const drawn = order.map((i) => data.order.indexOf(i));
      drawn.forEach((r, k) => {
        copy(edge, y(r), x(0), y(r + 1), edge, y(k), x(0), y(k + 1));
        copy(x(n), y(r), x1, y(r + 1), x(n), y(k), x1, y(k + 1));
        copy(x(r), y(n), x(r + 1), y1, x(k), y(n), x(k + 1), y1);
        drawn.forEach((c, l) => copy(x(c), y(r), x(c + 1), y(r + 1), x(l), y(k), x(l + 1), y(k + 1), frame, gap));
      });
      canvas.style.width = `${image.getBoundingClientRect().width}px`;
      image.after(canvas);
      image.hidden = true;
    }
    show(null);
    choose(model);
  }

  // The row and column under a pointer: n and beyond on the names; null elsewhere.
  function placeOf(event) {
    const frame = plot.getBoundingClientRect();
    const row = Math.floor(((event.clientY - frame.top) / frame.height - top) / (bottom - top) * n);
    const column = Math.floor(((event.clientX - frame.left) / frame.width - left) / (right - left) * n);
    return row < 0 || column < 0 || Math.min(row, column) >= n ? null : [row, column];
  }
  const inside = (place) => place && Math.max(...place) < n;
  plot.addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (event.pointerType === "mouse") show(inside(place) ? place : null);
  });
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(null));
  const chosen = (name) => { choose(name === model ? null : name); self.onmodel(model); };
  plot.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (inside(place)) show(place);
    else chosen(place ? order[Math.min(...place)] : null);
  });
  plot.addEventListener("keydown", (event) => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (move) show(at ? at.map((x, k) => Math.min(n - 1, Math.max(0, x + move[k]))) : [0, 0]);
    else if (event.key === "Enter" && at) chosen(order[at[0]]);
    else if (event.key === "Escape") at ? show(null) : chosen(null);
    else return;
    event.preventDefault();
  });
  plot.addEventListener("blur", () => show(null));
  const orders = Object.keys(data.orders);
  select.append(...orders.map((by) => element("option", {textContent: by})));
  select.addEventListener("change", () => arrange(select.value));
  root.querySelector(".orders").hidden = orders.length < 2;
  return self;
}

// The table of all pairs. A name in the search field lists the neighbours of that model.
function pairTable(root, data, matrix) {
  const {names, links, groups} = data, FIRST = 20;
  const columns = data.columns.filter((column) => !/^noise/.test(column.title));  // there is no room
  const box = document.querySelector(`[data-of="${root.id}"]`), table = box.querySelector("table"), body = table.tBodies[0];
  const search = box.querySelector("input"), count = box.querySelector(".count"), more = box.querySelector(".more");
  // The names, the numbers, and the groups of both: a phone shows the first columns.
  const group = ([title, of]) => ({title, text: ([a, b]) => of[a] === of[b] ? `${of[a]}` : `${of[a]}, ${of[b]}`});
  const heads = [{title: "A", text: ([a]) => names[a]}, {title: "B", text: ([, b]) => names[b]},
    ...columns.map((column) => ({...column, column})), ...Object.entries(groups).map(group)];
  table.tHead.rows[0].append(...heads.map(({title, column, meaning}) => element("th", {scope: "col", className: column ? "n" : ""},
    element("button", {type: "button", textContent: title, title: meaning ?? ""}))));
  const value = (pair, {column, text}) => column ? valueOf(data, column, ...pair)[0] : text(pair);
  const words = heads.filter((head) => !head.column);
  const name = (i) => links[i] ? element("a", {href: links[i], textContent: names[i]}) : names[i];
  const all = names.flatMap((_, b) => names.slice(0, b).map((_, a) => [a, b]));
  let sorted = {column: 2, up: false}, limit = FIRST;
  table.tHead.rows[0].cells[2].setAttribute("aria-sort", "descending");

  function draw() {
    const text = search.value.trim().toLowerCase(), model = names.findIndex((x) => x.toLowerCase() === text);
    const parts = text.split(/\s+/);
    const found = model >= 0
      ? all.filter((pair) => pair.includes(model)).map(([a, b]) => [model, a === model ? b : a])
      : all.filter((pair) => parts.every((part) => words.map(({text}) => text(pair)).join(" ").toLowerCase().includes(part)));
    found.sort((x, y) => compare(value(x, heads[sorted.column]), value(y, heads[sorted.column]), sorted.up));
    const shown = found.slice(0, limit);
    body.replaceChildren(...shown.map((pair) => element("tr", {}, ...heads.map(({column, text}, k) => element("td",
      {className: column ? "n" : "name"}, k < 2 ? name(pair[k]) : column ? valueOf(data, column, ...pair)[1] : text(pair))))));
    count.textContent = `${shown.length} of ${found.length} ${model >= 0 ? `neighbours of ${names[model]}` : text ? "pairs that match" : "pairs"}`;
    more.hidden = shown.length === found.length;
    focusable();
    return model;
  }
  headers(table, (column, up) => { sorted = {column, up}; draw(); });
  search.addEventListener("input", () => {
    limit = FIRST;
    const model = draw();
    matrix.select(model < 0 ? null : model);
  });
  more.addEventListener("click", () => { limit = Infinity; draw(); });
  box.hidden = false;
  draw();
  return (model) => {
    search.value = model == null ? "" : names[model];
    limit = FIRST;
    draw();
  };
}
