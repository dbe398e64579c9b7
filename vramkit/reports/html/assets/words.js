// Words and elements. Whatever a name holds, it becomes text: nothing here or elsewhere writes HTML.
"use strict";

const UNITS = ["KiB", "MiB", "GiB", "TiB"];

/** Text of a number of bytes, as vramkit's text report has it: "1.50 GiB". */
function sizeText(bytes) {
  const sign = bytes < 0 ? "-" : "";
  let value = Math.abs(bytes);
  if (value < 1024) return `${sign}${value} B`;
  let unit = -1;
  do {
    value /= 1024;
    unit += 1;
  } while (value >= 1023.95 && unit < UNITS.length - 1);
  return `${sign}${fixed(value, value < 9.995 ? 2 : 1)} ${UNITS[unit]}`;
}

/** A number with so many digits behind the point, halves to the even one as Python has it: cuBLAS's 16.25 MiB are 16.2. */
function fixed(value, digits) {
  const scaled = value * 10 ** digits;
  const below = Math.floor(scaled);
  return (scaled - below === 0.5 && below % 2 === 0 ? below / 10 ** digits : value).toFixed(digits);
}

function countText(number) {
  return Math.round(number).toLocaleString("en-US");
}

/** "1 event", "12 events" */
function manyText(count, thing) {
  return `${countText(count)} ${thing}${count === 1 ? "" : "s"}`;
}

function bytesText(bytes) {
  return `${countText(bytes)} B`;
}

function shareText(part, whole) {
  return whole > 0 ? `${((100 * part) / whole).toFixed(1)}%` : "";
}

/** "in the backward of Net.head, step 2 of 3"; of a snapshot "at event 812 of 1,097" */
function whenText(report, device, moment) {
  if (device.is_moment) return "no history was kept";
  if (device.moments.row[moment] === 0) return "before the first event";
  if (!device.knows_phases) return `at event ${countText(device.moments.row[moment])} of ${countText(device.events)}`;
  const phase = device.moments.phase[moment];
  const module = device.moments.module[moment];
  const words = phase === 0 ? report.phases[0] : `in the ${report.phases[phase]}`;
  const inside = module >= 0 ? ` of ${device.modules.name[module]}` : "";
  // Evaluation lies between steps.
  const step = device.steps && report.phases[phase] !== "evaluation";
  return `${words}${inside}` + (step ? `, step ${device.moments.step[moment] + 1} of ${device.steps}` : "");
}

/** What the highest of a device is called: of a history without its beginning it need not be the peak. */
function mostText(device, what) {
  if (device.is_moment) return what;
  return device.is_window ? `most ${what} in what was kept` : `peak ${what}`;
}

function peakText(device) {
  if (device.is_moment) return "One moment: ";
  return device.is_window ? "The highest in what was kept: " : "The peak: ";
}

/** An element. Attributes that begin with "on" listen; children are elements or texts, and null is left out. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

/** A piece of a drawing. */
function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** The first line of a table. A heading that stands above numbers is an array of it. */
function headings(...columns) {
  const cells = columns.map((column) =>
    element("th", { scope: "col", class: Array.isArray(column) ? "number" : null }, column),
  );
  return element("thead", {}, element("tr", {}, cells));
}

function swatch(key) {
  return element("span", { class: `swatch ${key}`, "aria-hidden": "true" });
}

/** What a part of the sum is called, and its class of colour. */
function partsOf(report) {
  return [
    ...report.categories.map((name, index) => ({ name, key: `category-${index}` })),
    { name: "rounding and unsplit slack", key: "slack" },
    { name: "cached: held, not allocated", key: "cached" },
    { name: "graph pools", key: "pools" },
    { name: "CUDA context, others", key: "outside" },
  ];
}

function colour(key) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${key}`).trim();
}

/** Diagonal lines, for what is free. */
function hatch(context, ink, ground, ratio) {
  const side = Math.round(7 * ratio);
  const tile = document.createElement("canvas");
  tile.width = tile.height = side;
  const pen = tile.getContext("2d");
  pen.fillStyle = ground;
  pen.fillRect(0, 0, side, side);
  pen.strokeStyle = ink;
  pen.lineWidth = 1.4 * ratio;
  for (const shift of [-side, 0, side]) {
    pen.beginPath();
    pen.moveTo(shift - 1, side + 1);
    pen.lineTo(shift + side + 1, -1);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

/** The one box that follows the pointer. */
const tip = {
  show(x, y, ...children) {
    const box = document.getElementById("tip");
    fill(box, ...children);
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
    box.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
    box.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - height - 4))}px`;
  },
  hide() {
    document.getElementById("tip").hidden = true;
  },
};

/** A line of a tip: a colour, a name, a size. */
function tipRow(key, name, bytes) {
  return element(
    "div",
    { class: "tip-row" },
    key ? swatch(key) : null,
    element("span", { class: "tip-name" }, name),
    element("span", { class: "number" }, sizeText(bytes)),
  );
}
