"use strict";
// Tables that sort, and the heatmap with its table of pairs. Nothing is loaded; without this file
// the page is complete but still.

const UNKNOWN = "–", MINUS = "−";
const number = (x, digits = 2) => x == null ? UNKNOWN : x.toFixed(digits).replace("-", MINUS);
const percent = (x) => x == null ? UNKNOWN : (100 * x).toFixed(1).replace("-", MINUS) + "%";
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

for (const root of document.querySelectorAll(".matrix")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const heatmap = interactive(root, data);
  const table = root.querySelector("table.pairs");
  const look = table ? pairTable(root, data, table, heatmap) : () => {};
  heatmap.onmodel = look;
  root.querySelector(".tools").hidden = false;
}
focusable();

// The pair of models i and j, with the first listed as A; null on the diagonal.
function pairAt(data, i, j) {
  const [a, b] = i < j ? [i, j] : [j, i];
  const at = b * (b - 1) / 2 + a, pair = {a, b};
  for (const column in data.pairs) pair[column] = data.pairs[column][at];
  return pair;
}

function lines(data, i, j) {
  const {names, pairs, models} = data;
  if (i === j) {
    const known = models.white_box_score[i] != null;
    return [`${names[i]} with itself`].concat(known ? [
      `white-box success ${percent(models.white_box_success[i])}`,
      `s = ${number(models.white_box_score[i])}`] : []);
  }
  const pair = pairAt(data, i, j), [a, b] = [names[pair.a], names[pair.b]];
  const interval = pair.low == null ? "" : ` (95% interval ${number(pair.low)} to ${number(pair.high)})`;
  const text = [`${a} and ${b}`, `${data.symbol} = ${number(pair.score)}${interval}`];
  if (pairs.n) text.push(`n = ${pair.n.toLocaleString("en")} images`);
  if (pairs.a_fools_b) {
    text.push(`${a} fools ${b}: ${percent(pair.a_fools_b)}`, `${b} fools ${a}: ${percent(pair.b_fools_a)}`);
  }
  if (pairs.noise_fools_a) {
    text.push(`noise fools ${b}: ${percent(pair.noise_fools_b)}`, `noise fools ${a}: ${percent(pair.noise_fools_a)}`);
    const above = pair.above_noise === false ? "; not above noise" : "";
    text.push(`corrected for chance: ${percent(pair.corrected)}${above}`);
  }
  return text;
}

// The heatmap: pointing, tapping and arrow keys show a cell; returns what the table needs of it.
function interactive(root, data) {
  const svg = root.querySelector("svg.heatmap"), plot = svg.querySelector(".plot");
  const tip = root.querySelector(".tip"), {names, step} = data, n = names.length;
  const rows = [...plot.querySelectorAll(".row")], columns = [...plot.querySelectorAll(".column")];
  const shape = (name) => plot.appendChild(document.createElementNS(svg.namespaceURI, name));
  const veils = [0, 1, 2, 3].map(() => shape("rect")), cursor = shape("rect");
  veils.forEach((veil) => veil.setAttribute("class", "veil"));
  cursor.setAttribute("class", "cursor");
  let order = data.order, at = null, model = null;  // order: models by place; at: [row, column]
  const self = {onmodel: () => {}, select};
  svg.setAttribute("role", "application");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("aria-label", svg.getAttribute("aria-label") + " Arrow keys move between cells; "
    + "Enter shows the row and column of a model, Escape all.");

  function box(rect, x, y, width, height) {
    Object.entries({x, y}).forEach(([key, value]) => rect.setAttribute(key, value));
    rect.style.width = `${Math.max(width, 0)}px`;
    rect.style.height = `${Math.max(height, 0)}px`;
  }

  function show(place) {
    at = place;
    tip.hidden = !place;
    cursor.toggleAttribute("hidden", !place);
    [...rows, ...columns].forEach((g) => g.classList.remove("here"));
    if (!place) return;
    const [row, column] = place;
    box(cursor, column * step, row * step, step, step);
    rows[data.order.indexOf(order[row])].classList.add("here");
    columns[data.order.indexOf(order[column])].classList.add("here");
    const [head, ...rest] = lines(data, order[row], order[column]);
    tip.replaceChildren(element("b", {textContent: head}), ...rest.map((text) => element("div", {textContent: text})));
    // Beside the cell, on the side where there is room.
    const cell = cursor.getBoundingClientRect(), frame = root.getBoundingClientRect();
    const right = cell.right - frame.left + 10, width = tip.offsetWidth;
    const fits = right + width <= frame.width;
    tip.style.left = `${Math.max(0, fits ? right : Math.min(cell.left - frame.left - width - 10, frame.width - width))}px`;
    tip.style.top = `${cell.bottom - frame.top + (fits || cell.left - frame.left > width + 10 ? -20 : 10)}px`;
  }

  function select(chosen) {
    model = chosen;
    const k = chosen == null ? 0 : order.indexOf(chosen), edge = (k + 1) * step, all = n * step;
    const end = chosen == null ? 0 : all - edge, start = chosen == null ? 0 : k * step;
    box(veils[0], 0, 0, start, start);
    box(veils[1], edge, 0, end, start);
    box(veils[2], 0, edge, start, end);
    box(veils[3], edge, edge, end, end);
  }

  function arrange(by) {
    const value = {
      cluster: (i) => data.order.indexOf(i),
      name: (i) => names[i],
      accuracy: (i) => data.models.clean_accuracy[i],
    }[by] ?? ((i) => data.groups[by][i]);
    order = [...data.order].sort((i, j) => compare(value(i), value(j), by !== "accuracy"));
    const place = data.order.map((i) => order.indexOf(i));  // of each element, which never moves in the DOM
    rows.forEach((row, r) => {
      row.setAttribute("transform", `translate(0 ${place[r] * step})`);
      [...row.lastChild.children].forEach((cell, c) => cell.setAttribute("transform", `translate(${place[c] * step})`));
    });
    columns.forEach((column, c) => column.setAttribute("transform", `translate(${place[c] * step} 0)`));
    show(null);
    select(model);
  }

  // The row and column under a pointer; -1 on names.
  function placeOf(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(plot.getScreenCTM().inverse());
    const [row, column] = [point.y, point.x].map((x) => x < 0 ? -1 : Math.floor(x / step));
    return row < n && column < n ? [row, column] : null;
  }
  const inside = (place) => place && place[0] >= 0 && place[1] >= 0;
  svg.addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (event.pointerType === "mouse") show(inside(place) ? place : null);
  });
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(null));
  svg.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (inside(place)) return show(place);
    if (!place || (place[0] < 0 && place[1] < 0)) return choose(null);
    choose(order[Math.max(...place)]);
  });
  svg.addEventListener("keydown", (event) => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (move) show(at ? at.map((x, k) => Math.min(n - 1, Math.max(0, x + move[k]))) : [0, 0]);
    else if (event.key === "Enter" && at) choose(order[at[0]]);
    else if (event.key === "Escape") at ? show(null) : choose(null);
    else return;
    event.preventDefault();
  });
  svg.addEventListener("blur", () => show(null));

  function choose(chosen) {
    chosen = chosen === model ? null : chosen;
    select(chosen);
    self.onmodel(chosen);
  }

  root.querySelector(".order").addEventListener("change", (event) => arrange(event.target.value));
  let zoom = 1;
  for (const button of root.querySelectorAll(".zoom button")) {
    button.addEventListener("click", () => {
      const factor = Number(button.value);
      zoom = factor ? Math.min(8, Math.max(0.5, zoom * factor)) : 1;
      svg.style.width = zoom === 1 ? "" : `${svg.viewBox.baseVal.width * zoom}px`;
      svg.style.maxWidth = zoom === 1 ? "" : "none";
      show(null);
      focusable();
    });
  }
  select(null);
  show(null);
  return self;
}

// The table of all pairs. A name in the search field lists the neighbours of that model.
function pairTable(root, data, table, heatmap) {
  const {names, links} = data, n = names.length, body = table.tBodies[0];
  const keys = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.key);
  const search = root.querySelector("input[type=search]"), count = root.querySelector(".count");
  const more = root.querySelector(".more"), FIRST = 20;
  const all = [];
  for (let b = 1; b < n; b++) for (let a = 0; a < b; a++) all.push(pairAt(data, a, b));
  let sorted = {column: keys.indexOf("score"), up: false}, limit = FIRST;
  const name = (i) => {
    const text = links[i] ? element("a", {href: links[i], textContent: names[i]}) : names[i];
    return element("span", {className: "name"}, text);
  };
  const cell = {
    a: (pair) => name(pair.a), b: (pair) => name(pair.b),
    bases: (pair) => data.groups.base ? `${data.groups.base[pair.a]}, ${data.groups.base[pair.b]}` : "",
    score: (pair) => number(pair.score), n: (pair) => pair.n?.toLocaleString("en") ?? UNKNOWN,
    noise_fools_a: (pair) => `${percent(pair.noise_fools_a)}, ${percent(pair.noise_fools_b)}`,
    low: (pair) => pair.low == null ? UNKNOWN : `${number(pair.low)} to ${number(pair.high)}`,
    above_noise: (pair) => pair.above_noise == null ? UNKNOWN : pair.above_noise ? "yes" : "no",
  };
  const value = (pair, key) => key === "a" || key === "b" ? names[pair[key]]
    : key === "bases" ? cell.bases(pair) : typeof pair[key] === "boolean" ? Number(pair[key]) : pair[key];
  // Seen from one model, that model is A.
  const seen = (pair, model) => model !== pair.b ? pair : {
    ...pair, a: pair.b, b: pair.a, a_fools_b: pair.b_fools_a, b_fools_a: pair.a_fools_b,
    noise_fools_a: pair.noise_fools_b, noise_fools_b: pair.noise_fools_a};

  function draw() {
    const text = search.value.trim().toLowerCase(), model = names.findIndex((x) => x.toLowerCase() === text);
    const words = text.split(/\s+/);
    const found = all
      .filter((pair) => model >= 0 ? pair.a === model || pair.b === model
        : words.every((word) => `${names[pair.a]} ${names[pair.b]} ${cell.bases(pair)}`.toLowerCase().includes(word)))
      .map((pair) => seen(pair, model));
    const key = keys[sorted.column];
    found.sort((x, y) => compare(value(x, key), value(y, key), sorted.up));
    const shown = found.slice(0, limit);
    body.replaceChildren(...shown.map((pair) => element("tr", {}, ...keys.map((k) => element(
      "td", {className: ["a", "b", "bases"].includes(k) ? "" : "n"}, (cell[k] ?? ((p) => percent(p[k])))(pair))))));
    const what = model >= 0 ? `neighbours of ${names[model]}` : text ? "pairs that match" : "pairs";
    count.textContent = `${shown.length} of ${found.length} ${what}`;
    more.hidden = shown.length === found.length;
    focusable();
    return model;
  }
  headers(table, (column, up) => { sorted = {column, up}; draw(); });
  search.addEventListener("input", () => {
    limit = FIRST;
    const model = draw();
    heatmap.select(model < 0 ? null : model);
  });
  more.addEventListener("click", () => { limit = Infinity; draw(); });
  root.querySelector(".look").hidden = false;
  draw();
  return (model) => {
    search.value = model == null ? "" : names[model];
    limit = FIRST;
    draw();
  };
}
