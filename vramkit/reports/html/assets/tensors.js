// The largest tensors at a moment: equal ones as one row, which opens.
"use strict";

const TENSOR_GROUPS = 20;
const GROUP_MEMBERS = 40;

/** What is known of an allocation, for a tip. */
function aboutAllocation(report, device, row) {
  const { requested, block, category } = device.allocations;
  const part = partsOf(report)[category[row]];
  return [
    element("div", { class: "tip-title" }, nameOf(device, row) || madeIn(report, device, row)),
    tipRow(part.key, part.name, requested[row]),
    block[row] > requested[row] ? tipRow("slack", "block", block[row]) : null,
    element("div", { class: "tip-note" }, `made ${madeIn(report, device, row)}`),
    lineOf(device, row) ? element("div", { class: "tip-note" }, lineOf(device, row)) : null,
  ];
}

function nameOf(device, row) {
  const name = device.allocations.name[row];
  return name >= 0 ? device.names[name] : "";
}

/** Where an allocation was made, and by which operator, where one is known. */
function madeIn(report, device, row) {
  const { phase, module } = device.allocations;
  const operator = operatorOf(device, row);
  const by = operator ? ` by ${operator}` : "";
  if (phase[row] === 0 && !device.knows_phases) {
    return `${lineOf(device, row) ? "at a line of the program" : "at an unknown line"}${by}`;
  }
  const words = phase[row] === 0 ? "outside of the phases" : `in the ${report.phases[phase[row]]}`;
  return `${words}${module[row] >= 0 ? ` of ${device.modules.name[module[row]]}` : ""}${by}`;
}

function drawTensors(report, device, box, moment, inside) {
  const { begin, count, requested, category, phase, owner, step } = device.allocations;
  const rows = aliveAt(device.allocations, moment)
    .filter((row) => !inside || (owner[row] >= 0 && inside[owner[row]]))
    .sort((a, b) => requested[b] - requested[a]);
  const groups = new Map();
  for (const row of rows) {
    const key = `${requested[row]} ${category[row]} ${phase[row]} ${device.allocations.module[row] < 0}`;
    const group = groups.get(key);
    if (group) group.push(row);
    else if (groups.size === TENSOR_GROUPS) {
      if (requested[row] < requested[[...groups.values()].at(-1)[0]]) break;
    } else groups.set(key, [row]);
  }
  const parts = partsOf(report);
  const last = device.count - 1 || 1;

  const life = (row) => {
    const from = (100 * begin[row]) / (last + 1);
    const share = (100 * count[row]) / (last + 1);
    return element(
      "div",
      { class: "life", title: lifeText(row) },
      element("div", {
        class: `life-span ${parts[category[row]].key}`,
        style: { left: `${Math.min(from, 99)}%`, width: `${Math.max(1, share)}%` },
      }),
      element("div", { class: "life-now", style: { left: `${(100 * moment) / (last + 1)}%` } }),
    );
  };
  const lifeText = (row) => {
    const rowsOf = device.moments.row;
    const made = device.knows_phases ? `since step ${step[row] + 1}` : "made";
    const since =
      begin[row] === 0
        ? "there from the start"
        : `${made}, ${manyText(rowsOf[moment] - rowsOf[begin[row]], "event")} ago`;
    const until =
      begin[row] + count[row] >= device.count
        ? "until the end"
        : `for ${manyText(rowsOf[begin[row] + count[row]] - rowsOf[moment], "event")} more`;
    return `${since}; ${until}`;
  };
  const cells = (row, head, size) => [
    element("td", { class: "number" }, head),
    element("td", { class: "number" }, sizeText(size)),
    element("td", {}, swatch(parts[category[row]].key), ` ${parts[category[row]].name}`),
  ];
  const describe = (row) =>
    element(
      "td",
      { class: "what" },
      nameOf(device, row)
        ? [element("b", {}, nameOf(device, row)), element("br"), element("small", {}, madeIn(report, device, row))]
        : madeIn(report, device, row),
      source(row),
    );
  /** The line that made it, which opens its stack. */
  const source = (row) =>
    lineOf(device, row)
      ? element(
          "details",
          { class: "source" },
          element("summary", {}, lineOf(device, row)),
          stackOf(device, row).map(({ text, whose }) =>
            element("div", { class: whose === 0 ? "frame" : "frame muted" }, text),
          ),
        )
      : null;
  const age = (row) => element("td", { class: "age" }, life(row), element("small", {}, lifeText(row)));

  const lines = [...groups.values()].map((members) => {
    const [first] = members;
    if (members.length === 1)
      return element("tbody", {}, element("tr", {}, cells(first, "", requested[first]), describe(first), age(first)));
    const names = [...new Set(members.map((row) => nameOf(device, row) || madeIn(report, device, row)))];
    const body = element("tbody", {});
    const linesOf = (all) => {
      const lines = [...new Set(all.map((row) => lineOf(device, row)))].filter(Boolean);
      const more = lines.length > 1 ? ` and ${manyText(lines.length - 1, "other line")}` : "";
      return lines.length ? element("div", { class: "source" }, `${lines[0]}${more}`) : null;
    };
    const toggle = element(
      "button",
      { type: "button", class: "open", "aria-expanded": "false", onclick: () => open() },
      `${countText(members.length)} ×`,
    );
    const what = element(
      "td",
      { class: "what" },
      names.slice(0, 2).map((name) => [name, element("br")]),
      names.length > 2 ? element("small", {}, `and ${countText(names.length - 2)} more`) : null,
      linesOf(members),
    );
    body.append(element("tr", {}, cells(first, toggle, requested[first]), what, age(first)));
    const open = () => {
      const opened = toggle.getAttribute("aria-expanded") === "true";
      toggle.setAttribute("aria-expanded", String(!opened));
      if (opened) {
        while (body.rows.length > 1) body.deleteRow(1);
        return;
      }
      for (const row of members.slice(0, GROUP_MEMBERS))
        body.append(element("tr", { class: "member" }, cells(row, "", requested[row]), describe(row), age(row)));
      if (members.length > GROUP_MEMBERS)
        body.append(
          element(
            "tr",
            { class: "member" },
            element("td", { colspan: "5" }, `and ${countText(members.length - GROUP_MEMBERS)} more`),
          ),
        );
    };
    return body;
  });
  if (!lines.length) {
    fill(box, element("p", { class: "note" }, "No tensor is alive here at this moment."));
    return;
  }
  fill(
    box,
    element(
      "div",
      { class: "scroll" },
      element("table", { class: "tensors" }, headings("", ["size"], "category", "what", "life"), lines),
    ),
  );
}
