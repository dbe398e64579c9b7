// The module tree as an icicle: each box is a module, inside it what is inside it, as wide as what it holds.
"use strict";

const ICICLE_ROWS = 9;
const MIN_BOX = 0.0016; // of the width

const MEASURES = [
  {
    key: "holds",
    label: "By what it holds",
    note: "As wide as the bytes that belong to each module at this moment.",
  },
  { key: "activations", label: "By activations", note: "As wide as the activations of each module at this moment." },
  {
    key: "peak",
    label: "By peak inside",
    note:
      "The fuller a box, the more was allocated on the device, at most, while the program was in that module. " +
      "These are levels of the whole recording and do not add up; a box is as wide as there are modules in it.",
  },
];

/** Bytes at a moment that belong to each module, with all inside it: the last row is what belongs to none. */
function heldByModule(report, device, moment) {
  const { owner, category, requested } = device.allocations;
  const kinds = report.categories.length;
  const count = device.modules.name.length;
  const sums = new Float64Array((count + 1) * kinds);
  for (const row of aliveAt(device.allocations, moment)) {
    const module = owner[row] >= 0 ? owner[row] : count;
    sums[module * kinds + category[row]] += requested[row];
  }
  for (let module = count - 1; module >= 0; module -= 1) {
    // parents come first
    const parent = device.modules.parent[module];
    if (parent >= 0) for (let i = 0; i < kinds; i += 1) sums[parent * kinds + i] += sums[module * kinds + i];
  }
  return (module) => sums.subarray(module * kinds, (module + 1) * kinds);
}

/** How many modules without others inside are in each, of those that the program was in at any time. */
function leavesOf({ peak, parent, name }) {
  const leaves = new Float64Array(name.length + 1);
  for (let module = name.length - 1; module >= 0; module -= 1) {
    if (!peak[module]) continue;
    leaves[module] = leaves[module] || 1;
    if (parent[module] >= 0) leaves[parent[module]] += leaves[module];
  }
  return leaves;
}

/** What is at a module or inside it. */
function insideOf(device, module) {
  const inside = new Uint8Array(device.modules.name.length);
  inside[module] = 1;
  device.modules.parent.forEach((parent, i) => {
    if (parent >= 0 && inside[parent]) inside[i] = 1;
  });
  return inside;
}

/** choose(module) is called when one was clicked; null is all of them. */
function drawModules(report, device, box, moment, state, choose) {
  const { modules } = device;
  const none = modules.name.length;
  const held = heldByModule(report, device, moment);
  const activations = report.categories.indexOf("activations");
  const sum = (sizes) => sizes.reduce((total, size) => total + size, 0);
  const measure = MEASURES.find(({ key }) => key === state.measure) ?? MEASURES[0];
  const weigh = {
    holds: (module) => sum(held(module)),
    activations: (module) => held(module)[activations],
    peak: (module) => (module === none ? 0 : modules.peak[module]),
  }[measure.key];
  const highest = Math.max(1, device.peak_allocated);
  const leaves = measure.key === "peak" ? leavesOf(modules) : null;
  const share = leaves ? (module) => leaves[module] : weigh;

  const choices = element(
    "div",
    { class: "choices", role: "group", "aria-label": "What the boxes show" },
    MEASURES.map(({ key, label }) =>
      element(
        "button",
        { type: "button", "aria-pressed": String(key === measure.key), onclick: () => choose({ measure: key }) },
        label,
      ),
    ),
  );

  const icicle = element("div", { class: "icicle", role: "tree" });
  let depth = 0;
  const chosen = state.module;
  const roots = chosen === null ? [...modules.roots, none] : [chosen];
  placeAll(roots, 0, 1, 0, 0);
  icicle.style.setProperty("--rows", String(Math.max(1, depth)));
  fill(box, choices, element("p", { class: "note" }, measure.note), path(), icicle);
  steer(icicle);

  function placeAll(siblings, left, width, row, own) {
    const sized = siblings.map((module) => ({ module, weight: share(module) })).filter(({ weight }) => weight > 0);
    const total = own || sized.reduce((all, { weight }) => all + weight, 0);
    let at = left;
    for (const { module, weight } of sized) {
      const part = (weight / total) * width;
      place(module, at, part, row);
      at += part;
    }
  }

  function place(module, left, width, row) {
    if (width < MIN_BOX || row >= ICICLE_ROWS) return;
    depth = Math.max(depth, row + 1);
    icicle.append(node(module, left, width, row));
    if (module !== none) placeAll(modules.children[module], left, width, row + 1, share(module));
  }

  function node(module, left, width, row) {
    const name = module === none ? "no module" : label(module);
    const about = (event) => tip.show(event.clientX, event.clientY, ...details(module));
    const styles = { left: `${100 * left}%`, width: `${100 * width}%`, "--row": String(row) };
    const made = element("button", {
      type: "button",
      role: "treeitem",
      class: module === none ? "box none" : "box",
      style: styles,
      "aria-label": `${module === none ? name : modules.name[module]}: ${sizeText(weigh(module))}`,
      "data-module": String(module),
      onmousemove: about,
      onmouseleave: tip.hide,
      "data-row": String(row),
      tabindex: "-1",
      onclick: () => module !== none && choose({ module: module === chosen ? parentOf(module) : module }),
    });
    const strip = element("span", { class: "box-strip" });
    if (measure.key === "peak") {
      made.style.setProperty("--level", `${(100 * weigh(module)) / highest}%`);
      made.classList.add("level");
    } else {
      const sizes =
        measure.key === "activations" ? [[activations, held(module)[activations]]] : [...held(module).entries()];
      const total = sum(sizes.map(([, size]) => size));
      for (const [category, size] of sizes) {
        if (size > 0)
          strip.append(
            element("span", { class: `category-${category}`, style: { width: `${(100 * size) / total}%` } }),
          );
      }
    }
    if (width > 0.02)
      made.append(element("span", { class: "box-name" }, name, " ", element("i", {}, sizeText(weigh(module)))));
    made.append(strip);
    return made;
  }

  function parentOf(module) {
    return modules.parent[module] >= 0 ? modules.parent[module] : null;
  }

  function label(module) {
    const parent = modules.parent[module];
    const prefix = parent >= 0 ? `${modules.name[parent]}.` : "";
    const name = modules.name[module];
    return prefix && name.startsWith(prefix) ? name.slice(prefix.length) : name;
  }

  function path() {
    if (chosen === null) return null;
    const steps = [];
    for (let module = chosen; module !== null; module = parentOf(module)) steps.unshift(module);
    const link = (text, module, current) =>
      element(
        "button",
        {
          type: "button",
          class: "crumb",
          "aria-current": current ? "true" : null,
          onclick: () => choose({ module }),
        },
        text,
      );
    return element(
      "nav",
      { class: "path", "aria-label": "Where in the tree" },
      link("all modules", null, false),
      steps.map((module) => [" › ", link(label(module), module, module === chosen)]),
    );
  }

  function details(module) {
    const sizes = [...held(module).entries()].filter(([, size]) => size > 0).sort((a, b) => b[1] - a[1]);
    const parts = partsOf(report);
    if (module === none)
      return [
        element("div", { class: "tip-title" }, "In no module"),
        sizes.map(([i, size]) => tipRow(parts[i].key, parts[i].name, size)),
      ];
    const facts = [
      modules.kind[module],
      modules.shape[module] && `returns ${modules.shape[module]}`,
      modules.calls[module] && `called ${countText(modules.calls[module])}×`,
    ];
    return [
      element("div", { class: "tip-title" }, modules.name[module]),
      element("div", { class: "tip-note" }, facts.filter(Boolean).join(", ")),
      sizes.map(([i, size]) => tipRow(parts[i].key, parts[i].name, size)),
      tipRow(null, "holds at this moment", sum(held(module))),
      modules.peak[module] ? tipRow(null, "most allocated while inside", modules.peak[module]) : null,
    ];
  }
}

/** Arrows go from box to box; the whole icicle is one stop of the Tab key. */
function steer(icicle) {
  const boxes = [...icicle.children];
  if (boxes.length) boxes[0].tabIndex = 0;
  icicle.addEventListener("keydown", (event) => {
    const here = event.target;
    const row = Number(here.dataset.row);
    const middle = here.offsetLeft + here.offsetWidth / 2;
    const inRow = (wanted) => boxes.filter((each) => Number(each.dataset.row) === wanted);
    const far = ({ offsetLeft: left, offsetWidth: width }) => Math.max(0, left - middle, middle - left - width);
    const nearest = (list) => list.reduce((best, each) => (best && far(best) <= far(each) ? best : each), null);
    const place = inRow(row).indexOf(here);
    const next = {
      ArrowLeft: () => inRow(row)[place - 1],
      ArrowRight: () => inRow(row)[place + 1],
      ArrowUp: () => nearest(inRow(row - 1)),
      ArrowDown: () => nearest(inRow(row + 1)),
    }[event.key]?.();
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}
