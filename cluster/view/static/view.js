// The pages' behaviour: charts, tables that sort and filter, and following a run. Tables and pictures need none of it.
"use strict";

// Charts ------------------------------------------------------------------------------------------------------------

const drawn = new WeakMap(); // place of a chart -> the figure that it shows
const LEGEND_ROW = 20; // pixels
const ALMOST_IN_SIGHT = { rootMargin: "400px" };
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
}, ALMOST_IN_SIGHT);

function theme(figure) {
  const style = getComputedStyle(document.documentElement);
  const [text, line, page] = ["--quiet", "--line", "--page"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  return {
    margin: { l: 46, r: 8, t: 6, b: 36 },
    font: { color: text, size: 12, family: "system-ui, sans-serif" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "x unified",
    hoverlabel: { bgcolor: page, bordercolor: line, font: { color: style.getPropertyValue("--text").trim() } },
    showlegend: figure.traces.filter((trace) => trace.showlegend !== false).length > 1,
    legend: { traceorder: "normal", orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    dragmode: "zoom",
    uirevision: "kept", // a zoom outlives new points
    xaxis: { ...axis, title: { text: figure.x_title, standoff: 4 }, showgrid: false },
    yaxis: { ...axis, rangemode: figure.below === 0 ? "tozero" : "normal", exponentformat: "e" },
    shapes: figure.marks.map(([x]) => ({
      type: "line", x0: x - 0.5, x1: x - 0.5, y0: 0, y1: 1, yref: "paper", line: { color: text, width: 1, dash: "dash" },
    })),
    annotations: figure.marks.map(([x, label]) => ({
      x: x - 0.5, y: 1, yref: "paper", yanchor: "top", xanchor: "left", text: "◂", hovertext: escape(label), showarrow: false,
    })),
  };
}

// Plotly takes some HTML in texts; those of a run folder are only texts.
function escape(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function draw(place) {
  const figure = drawn.get(place);
  const traces = figure.traces.map((trace) => ({ x: figure.x, ...trace, name: escape(trace.name) }));
  const named = figure.traces.filter((trace) => trace.showlegend !== false).length;
  place.style.minHeight = `${2 * LEGEND_ROW * named}px`; // the legend gets half of it
  Plotly.react(place, traces, theme(figure), { responsive: true, displayModeBar: false });
}

function chart(place) {
  drawn.set(place, JSON.parse(place.parentElement.querySelector("script").textContent));
  watcher.observe(place);
  place.addEventListener("keydown", read);
}

// The arrow keys read a chart's values, point by point.
function read(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const place = event.currentTarget, figure = drawn.get(place);
  const all = [...new Set([...figure.x, ...figure.traces.flatMap((trace) => trace.x ?? [])])].sort((a, b) => a - b);
  const before = all.indexOf(Number(place.dataset.at));
  const at = all[Math.min(Math.max((before < 0 ? -1 : before) + steps[event.key], 0), all.length - 1)];
  place.dataset.at = at;
  const values = figure.traces.flatMap((trace) => {
    const value = trace.y[(trace.x ?? figure.x).indexOf(at)];
    return value === undefined || value === null ? [] : [`${trace.name} ${value}`];
  });
  const mark = figure.marks.filter(([x]) => x === at).map(([, text]) => `changed: ${text}`);
  place.parentElement.querySelector(".reading").textContent = [`${figure.x_title} ${at}`, ...values, ...mark].join(", ");
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.querySelectorAll(".plot").forEach((place) => place.data && draw(place));
});

// Tables ------------------------------------------------------------------------------------------------------------

function sort(table) {
  const head = table.querySelector("th[aria-sort]");
  if (!head) return;
  const column = head.cellIndex, sign = head.getAttribute("aria-sort") === "ascending" ? 1 : -1;
  const value = (row) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "None" ? -Infinity : Number(cell.dataset.value);
  };
  const keyed = [...table.tBodies[0].rows].map((row) => [value(row), row]);
  keyed.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/);
  for (const row of document.querySelectorAll("#runs tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}

function choose() {
  const chosen = document.querySelectorAll("#runs input:checked").length;
  document.getElementById("compare").disabled = chosen < 2;
}

document.addEventListener("click", (event) => {
  const head = event.target.closest("#runs th")?.querySelector("button");
  if (!head || event.target !== head) return;
  const cell = head.closest("th"), rising = cell.getAttribute("aria-sort") !== "ascending";
  cell.closest("tr").querySelectorAll("th").forEach((one) => one.removeAttribute("aria-sort"));
  cell.setAttribute("aria-sort", rising ? "ascending" : "descending");
  sort(cell.closest("table"));
});

// Forms that send themselves, and pictures over evaluations -----------------------------------------------------------

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-send]")) event.target.form.requestSubmit();
  if (event.target.matches("#runs input")) choose();
});
document.addEventListener("input", (event) => {
  if (event.target.id === "filter") filter();
  if (event.target.matches("[data-slider]")) slide(event.target);
});

function slide(slider) {
  const labels = JSON.parse(slider.dataset.slider), index = Number(slider.value);
  slider.setAttribute("aria-valuetext", labels[index]);
  slider.parentElement.querySelector("output").textContent = labels[index];
  document.querySelectorAll("[data-between]").forEach((picture) => {
    if (!series.has(picture)) series.set(picture, [shownBy(picture.previousElementSibling), ...JSON.parse(picture.dataset.between), shownBy(picture)]);
    Object.assign(picture, series.get(picture)[index]);
    picture.closest("figure").querySelector(".now").textContent = JSON.parse(picture.dataset.scores)[index];
  });
}

// The page holds each picture once: the first evaluation's and the last one's stand in it, those between in their data.
const series = new WeakMap();
const shownBy = (picture) => (picture.poster ? { poster: picture.poster, src: picture.src } : { src: picture.src });

// Following a run ---------------------------------------------------------------------------------------------------

const EVERY_MILLISECONDS = 1000;
let tag = `"${document.body.dataset.live}"`; // of what this page shows

async function follow() {
  try {
    const answer = await fetch(location.href, { headers: { "If-None-Match": tag }, cache: "no-store" });
    const answered = answer.ok || answer.status === 304;
    document.getElementById("following").textContent = answered ? "" : `no longer following: status ${answer.status}`;
    tag = answer.headers.get("ETag") ?? tag;
    if (answer.status === 200) renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    document.getElementById("following").textContent = "no longer following: the server doesn't answer";
  }
  setTimeout(follow, document.hidden ? 10 * EVERY_MILLISECONDS : EVERY_MILLISECONDS);
}

// Parts with a name that are in both pages are renewed; what was chosen, sorted and zoomed stays.
function renew(page) {
  for (const part of page.querySelectorAll("[data-follow], .chart")) {
    const here = document.getElementById(part.id);
    if (!here) return location.reload(); // a first chart, a first picture
    if (part.matches(".chart")) {
      const place = here.querySelector(".plot"), script = here.querySelector("script");
      const text = part.querySelector("script").textContent;
      if (text === script.textContent) continue;
      script.textContent = text;
      drawn.set(place, JSON.parse(text));
      if (place.data) draw(place);
    } else if (here.innerHTML !== part.innerHTML) {
      const focused = here.contains(document.activeElement) ? document.activeElement : null;
      const chosen = new Set([...here.querySelectorAll("input:checked")].map((one) => one.value));
      here.replaceChildren(...part.childNodes);
      here.querySelectorAll("input[type=checkbox]").forEach((one) => (one.checked = chosen.has(one.value)));
      if (focused) (same(here, focused) ?? document.getElementById("content")).focus();
    }
  }
  document.querySelectorAll("#runs").forEach(sort);
  if (!document.getElementById("filter")) return;
  filter();
  choose();
}

function same(part, element) {
  const told = ["id", "value", "href", "tabIndex", "ariaLabel"];
  return [...part.querySelectorAll(element.tagName)].find((one) => told.every((name) => one[name] === element[name]));
}

// Beginning ---------------------------------------------------------------------------------------------------------

document.querySelectorAll(".plot").forEach(chart);
if (document.getElementById("compare")) choose();
if ("live" in document.body.dataset) follow();
