"use strict";
// What the page was given, how values are written, and the colours of the reader's scheme.
const data = JSON.parse(document.getElementById("data").textContent);
const AXES = ["batch", "dim", "labels", "fan_in", "group_size"],
  SYMBOL = { batch: "B", dim: "D", labels: "L", fan_in: "K", group_size: "G" };
const darkScheme = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

const theme = () =>
  darkScheme.matches && !printing
    ? { i: 1, ink: "#e6e8eb", muted: "#9aa3ae", grid: "#333941", paper: "#1b1e23" }
    : { i: 0, ink: "#1d2127", muted: "#5c6470", grid: "#dfe3e8", paper: "#ffffff" };
const colorOf = (name) => data.styles[name].color[theme().i];
const faded = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

const digits = (x, n) =>
  x === 0 ? "0" : Math.abs(x) >= 10 ** n ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(n)));
const FORMS = {
  times: (x) => (x < 0.1 ? digits(x, 2) : x < 99.995 ? x.toFixed(2) : digits(x, 3)) + "×",
  ms: (x) => digits(x, 4) + " ms",
  mJ: (x) => digits(x, 4) + " mJ",
  flops: (x) => (x >= 1e12 ? digits(x / 1e12, 3) + "T" : digits(x / 1e9, 3) + "G"),
  bytes: (x) => {
    for (const unit of ["B", "KiB", "MiB"]) {
      if (x < 999.5) return digits(x, 3) + " " + unit;
      x /= 1024;
    }
    return digits(x, 3) + " GiB";
  },
  share: (x) => (100 * x).toFixed(1) + " %",
};
const form = (name, x) => (x === null || x === undefined ? "" : FORMS[name](x));
const count = (x) => x.toLocaleString("en");

const column = (name) => data.cases[name];
const cell = (name, row) => {
  const c = data.cases[name];
  return Array.isArray(c) ? c[row] : c.of[c.at[row]];
};
const rowOf = new Map(data.cases.id.map((id, row) => [id, row]));
const pointOf = (row) =>
  AXES.map((axis) => `${SYMBOL[axis]}=${count(cell(axis, row))}`).join(" ") +
  ` ${cell("pattern", row)} ${cell("dtype", row)}`;

// A record in words: [what, value], nothing that is missing.
function facts(row) {
  const get = (name) => cell(name, row),
    t = get("median_ms") !== null;
  const bytes = [
    ["layer", "layer_bytes"],
    ["extra memory", "peak_extra_bytes"],
    ["modelled", "modelled_extra_bytes"],
  ];
  return [
    ["run", get("run")],
    ["pass", get("pass")],
    ["point", pointOf(row)],
    ["status", get("status") + (get("reason") ? `: ${get("reason")}` : "")],
    [
      "median",
      t && `${form("ms", get("median_ms"))} (95 %: ${digits(get("ci_low_ms"), 4)} to ${digits(get("ci_high_ms"), 4)})`,
    ],
    ["samples", t && `${get("samples")} ${get("mode")}, ${get("method")}`],
    [
      "floor",
      get("floor_ms") !== null &&
        `${form("ms", get("floor_ms"))}${get("roof_share") !== null ? `, ${form("share", get("roof_share"))} of the roof` : ""}`,
    ],
    ...bytes.map(([what, name]) => [what, form("bytes", get(name))]),
    ["energy", form("mJ", get("energy_mj"))],
    ["SM clock", get("sm_mhz") && `${digits(get("sm_mhz"), 4)} MHz`],
    ["flags", get("flags")],
  ].filter(([, value]) => value);
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function choice(label, values, chosen, changed) {
  const select = make(
    "select",
    { onchange: () => changed(select.value) },
    ...values.map(([value, text]) => make("option", { value, selected: value === chosen }, text)),
  );
  return make("label", {}, label, select);
}
