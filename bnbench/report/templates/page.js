// Draws the charts in the page's theme, and makes legends, tables and axes answer. Libraries: Plotly and
// DataTables; no request.
"use strict";
(() => {
const PRINTED = 680; // pixels: the width of a printed page
const INK = ["#000000", "rgba(0,0,0,"]; // what the figures call the page's own ink, as a colour and as a band
const dark = matchMedia("(prefers-color-scheme: dark)");
const specs = JSON.parse(document.getElementById("charts")?.textContent ?? "{}");
const hidden = new Set(); // lines that the reader has taken out, in all charts
const chosen = {}; // by group of charts: the axis that the reader has chosen
const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };

const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const base = (axis) => axis.replace(/ \(.*/, ""); // without its unit, in which panels may differ
const plots = () => document.querySelectorAll(".plot");

// ---- charts

function colours(print) {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  if (print) return { ink: INK, quiet: "#444444", grid: "#dddddd", raised: "#ffffff", rule: "#bbbbbb" };
  const ink = dark.matches ? ["#ffffff", "rgba(255,255,255,"] : INK;
  return { ink, quiet: of("--quiet"), grid: of("--grid"), raised: of("--raised"), rule: of("--rule") };
}

// A figure in the theme's colours: a copy, since Plotly keeps what it is given.
function themed(spec, print) {
  const colour = colours(print);
  const text = JSON.stringify({ data: spec.data, layout: spec.layout });
  const inked = INK.reduce((made, ink, index) => made.replaceAll(`"${ink}`, `"${colour.ink[index]}`), text);
  const figure = JSON.parse(inked);
  const layout = figure.layout;
  Object.assign(layout, { autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
  layout.font = { ...layout.font, family: getComputedStyle(document.body).fontFamily, color: colour.quiet };
  layout.hoverlabel = {
    bgcolor: colour.raised, bordercolor: colour.rule, align: "left",
    font: { ...layout.font, color: colour.ink[0] },
  };
  layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom"; // a finger scrolls the page
  for (const [key, axis] of Object.entries(layout)) {
    if (/^[xy]axis\d*$/.test(key)) Object.assign(axis, { gridcolor: colour.grid, linecolor: colour.rule });
  }
  for (const words of layout.annotations ?? []) words.font = { ...words.font, color: colour.ink[0] };
  for (const trace of figure.data) {
    if (trace.legendgroup !== undefined) trace.visible = !hidden.has(trace.legendgroup);
  }
  return figure;
}

function figureOf(plot, print = false) {
  const spec = specs[plot.id];
  const figure = themed(spec, print);
  const axis = Object.keys(spec.axes ?? {}).find((name) => base(name) === chosen[plot.dataset.axes]);
  if (axis) {
    figure.data.forEach((trace, index) => { trace.x = spec.axes[axis][index]; });
    figure.layout.xaxis.title.text = axis;
  }
  return figure;
}

const draw = (plot) => {
  const { data, layout } = figureOf(plot);
  return Plotly.react(plot, data, layout, config);
};
const drawAll = () => Promise.all([...plots()].map(draw));

async function drawFirst() {
  for (const plot of plots()) {
    await draw(plot);
    await new Promise((done) => setTimeout(done)); // the page answers between two charts
  }
  document.documentElement.dataset.drawn = "yes";
}

// On paper charts are as wide as it, and nothing is closed.
function printed(print) {
  for (const details of document.querySelectorAll("details")) {
    if (print) details.dataset.was = details.open ? "open" : "";
    details.open = print || details.dataset.was === "open";
  }
  for (const plot of plots()) {
    const { data, layout } = figureOf(plot, print);
    if (print) {
      const beside = plot.closest(".several, .many") !== null;
      layout.width = beside ? PRINTED / 2 - 16 : PRINTED;
      layout.height = plot.clientHeight;
    }
    Plotly.react(plot, data, layout, config);
    if (!print) Plotly.Plots.resize(plot); // back to the width of the screen
  }
}

const captionOf = (plot) => plot.closest("figure").querySelector("figcaption");

// An image for slides: on white, with a legend and a title, since the page's own are not in it.
function save(plot, format, title) {
  const { data, layout } = figureOf(plot, true);
  Object.assign(layout, {
    title: { text: title.replaceAll("&", "&amp;").replaceAll("<", "&lt;"), font: { size: 14 } },
    showlegend: true, paper_bgcolor: "#ffffff", margin: { ...layout.margin, t: 48 },
  });
  Plotly.downloadImage({ data, layout }, { format, filename: `bnbench-${plot.id}`, width: 900, height: 560, scale: 2 });
}

function makeTools(plot) {
  const caption = captionOf(plot);
  const title = caption.textContent;
  const tools = make("span", { class: "tools" });
  for (const format of ["svg", "png"]) {
    const name = format.toUpperCase();
    const said = { "aria-label": `Save as ${name}: ${title}`, title: `save as ${name}` };
    const button = make("button", { type: "button", ...said }, name);
    button.addEventListener("click", () => save(plot, format, title));
    tools.append(button);
  }
  caption.append(tools);
}

// A legend's entry hides and shows its line in all charts.
function makeKeys() {
  const keys = [];
  for (const span of document.querySelectorAll(".key")) {
    const said = { "aria-pressed": "true", title: "hide or show in all charts" };
    const button = make("button", { type: "button", ...said }, ...span.childNodes);
    button.dataset.line = span.dataset.line;
    button.addEventListener("click", () => {
      const line = button.dataset.line;
      if (!hidden.delete(line)) hidden.add(line);
      for (const key of keys) key.setAttribute("aria-pressed", String(!hidden.has(key.dataset.line)));
      drawAll();
    });
    keys.push(button);
    span.replaceWith(button);
  }
}

// Where charts have several x axes, one choice for all of a section.
function makeChoices() {
  for (const section of document.querySelectorAll("main > section")) {
    const own = [...section.querySelectorAll(".plot")].filter((plot) => specs[plot.id].axes);
    if (!own.length) continue;
    for (const plot of own) plot.dataset.axes = section.id;
    const choice = make("fieldset", { class: "choice" }, make("legend", {}, "Horizontal axis"));
    const names = new Set(own.flatMap((plot) => Object.keys(specs[plot.id].axes).map(base)));
    [...names].forEach((name, index) => {
      const radio = make("input", { type: "radio", name: `axis-${section.id}`, value: name });
      radio.checked = index === 0;
      radio.addEventListener("change", () => {
        chosen[section.id] = name;
        own.forEach(draw);
      });
      choice.append(make("label", {}, radio, name));
    });
    section.querySelector(".parts").before(choice);
  }
}

// ---- tables

const words = (html) => DataTable.util.stripHtml(html).trim();
const ordered = (direction) => (left, right) => {
  const missing = (text) => text === "" || text === "–";
  if (missing(left) || missing(right)) return missing(left) - missing(right); // last either way
  const apart = left - right;
  return direction * (isNaN(apart) ? left.localeCompare(right, undefined, { numeric: true }) : apart);
};

function makeTable(table) {
  for (const head of table.tHead.rows[0].cells) {
    head.replaceChildren(make("button", { type: "button" }, ...head.childNodes)); // its clicks come to the heading
  }
  const filter = {
    text: `Filter ${table.caption.innerHTML.toLowerCase()} `, placeholder: "words, such as bn diverged",
  };
  const made = new DataTable(table, {
    autoWidth: false, paging: false, order: [], orderClasses: false, orderIndicators: false,
    columnDefs: [{ targets: "_all", type: "words" }],
    layout: {
      topStart: table.dataset.searching === "true" ? [{ search: filter }, "info"] : null,
      topEnd: null, bottomStart: null, bottomEnd: null,
    },
    language: {
      info: "", infoEmpty: "", infoFiltered: "_TOTAL_ of _MAX_ rows", zeroRecords: "No row has all these words.",
    },
  });
  const tools = made.table().container().querySelector(".dt-layout-row:not(.dt-layout-table)");
  if (tools) table.closest(".scroll").before(tools); // it stays where it is while the table scrolls
}

DataTable.type("words", {
  search: words, order: { pre: words, asc: ordered(1), desc: ordered(-1) },
});
for (const table of document.querySelectorAll(".table table")) {
  if (table.tBodies[0].rows.length > 1) makeTable(table);
}
if (typeof Plotly !== "undefined") {
  plots().forEach(makeTools);
  makeKeys();
  makeChoices();
  dark.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => printed(true));
  addEventListener("afterprint", () => printed(false));
  drawFirst();
}
})();
