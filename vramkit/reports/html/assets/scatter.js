// Variants of a plan as points: what each reserves, in the order of what they cost.
"use strict";

const SCATTER_HEIGHT = 380;
const SCATTER_EDGE = { left: 84, right: 24, top: 24, bottom: 34 };

/** Of memory. A card of many times what is needed would leave no room for differences: its end is not in the picture. */
function memoryScale(values, room) {
  const inside = room <= 2 * Math.max(...values) ? [...values, room] : values;
  const [least, most] = [Math.min(...inside), Math.max(...inside, 1)];
  const pad = 0.15 * (most - least) || most / 10;
  const low = Math.max(0, least - pad);
  const high = most + pad;
  const step = 2 ** Math.ceil(Math.log2((high - low) / 6));
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) ticks.push(i * step);
  return { low, high, ticks };
}

/** Corners of the line below which nothing is at that cost or less: of the front those with less memory than all before. */
function cornersOf(plan) {
  let least = Infinity;
  return plan.order.filter((index) => {
    const { on_front: isFront, reserved } = plan.variants[index];
    const isCorner = isFront && reserved < least;
    if (isCorner) least = reserved;
    return isCorner;
  });
}

function drawScatter(plan, box, chosen, choose) {
  const { variants, room, order } = plan;
  const { low, high, ticks } = memoryScale(
    variants.map(({ reserved }) => reserved),
    room,
  );
  const width = Math.max(300, box.clientWidth);
  const [left, right] = [SCATTER_EDGE.left, width - SCATTER_EDGE.right];
  const bottom = SCATTER_HEIGHT - SCATTER_EDGE.bottom;
  const across = (rank) => left + ((rank + 0.5) / order.length) * (right - left);
  const down = (bytes) => bottom - ((bytes - low) / (high - low)) * (bottom - SCATTER_EDGE.top);
  const places = [];
  order.forEach((index, rank) => {
    places[index] = [across(rank), down(variants[index].reserved)];
  });
  const line = (kind, x1, y1, x2, y2) => shape("line", { class: kind, x1, y1, x2, y2 });
  const label = (kind, x, y, text) => shape("text", { class: kind, x, y }, text);

  const axes = [
    ...ticks.flatMap((tick) => [
      line("grid", left, down(tick), right, down(tick)),
      label("tick end", left - 8, down(tick) + 4, sizeText(tick)),
    ]),
    ...order.slice(1).flatMap((index, rank) =>
      variants[index].effect === variants[order[rank]].effect
        ? []
        : [line("border", across(rank + 0.5), SCATTER_EDGE.top, across(rank + 0.5), bottom)],
    ),
    label("tick end", right, bottom + 22, "in the order of cost →"),
    label("tick", 4, 12, "reserved"),
  ];
  if (room <= high) {
    axes.push(line("room", left, down(room), right, down(room)));
    axes.push(label("room-label end", right, down(room) - 6, `the card's end: ${sizeText(room)}`));
  }
  const corners = cornersOf(plan).map((index) => places[index]);
  const path = corners.map(([x, y], number) => (number ? `H${x}V${y}` : `M${x},${y}`)).join("");
  const front = shape("path", { class: "front", d: corners.length ? `${path}H${right}` : "" });

  const points = order.map((index) => {
    const each = variants[index];
    const [cx, cy] = places[index];
    const marks = ["point", `effect-${each.effect}`, each.fits ? "" : "misfit", index === chosen ? "chosen" : ""];
    return shape("circle", {
      class: marks.filter(Boolean).join(" "),
      cx,
      cy,
      r: index === plan.cheapest ? 8 : 6,
      tabindex: 0,
      role: "button",
      "aria-label": `${each.name}: ${sizeText(each.reserved)}`,
      "data-variant": index,
      onclick: () => choose(index),
      onkeydown: (event) => {
        if (event.key === "Enter") choose(index);
      },
      onpointermove: (event) => variantTip(plan, each, event.clientX, event.clientY),
      onpointerleave: () => tip.hide(),
    });
  });

  const named = [...new Set([0, plan.cheapest])].filter((index) => index !== null);
  const names = named.map((index) => {
    const words = [index === 0 ? "as it is" : "", index === plan.cheapest ? "cheapest" : ""].filter(Boolean);
    const [x, y] = places[index];
    const isFar = x > width - 140;
    return label(`name ${isFar ? "end" : ""}`, x + (isFar ? -13 : 13), y - 8, words.join(", "));
  });

  const used = plan.effects.map((name, effect) => ({ name, effect })).filter(({ effect }) =>
    variants.some((each) => each.effect === effect),
  );
  fill(
    box,
    shape("svg", { class: "scatter", width, height: SCATTER_HEIGHT }, ...axes, front, ...points, ...names),
    element(
      "div",
      { class: "legend" },
      used.map(({ name, effect }) => element("span", {}, swatch(`effect-${effect}`), name)),
      element("span", {}, "filled: fits; hollow: does not"),
      element("span", {}, element("span", { class: "line-sample" }), "least memory at that cost"),
      room > high ? element("span", {}, `the card's end, ${sizeText(room)}, is above the picture`) : null,
    ),
  );
}

function variantTip(plan, each, left, top) {
  const operations = each.operations === null ? "not counted" : `x${each.operations.toFixed(2)}`;
  tip.show(
    left,
    top,
    element("div", { class: "tip-title" }, each.name),
    tipRow(null, "peak reserved", each.reserved),
    tipRow(null, "peak allocated", each.allocated),
    each.transferred === null ? null : tipRow(null, "over PCIe in a step", each.transferred),
    element("div", { class: "tip-note" }, `operations: ${operations}; effect: ${plan.effects[each.effect]}`),
    element("div", { class: "tip-note" }, each.fits ? `fits ${plan.card}` : `does not fit ${plan.card}`),
  );
}
