// The data of the page: columns become typed arrays, and these become what was there at a moment. Draws nothing.
"use strict";

const STACK_DEPTH = 100; // frames of a stack that are shown
const COLUMN_TYPES = { i1: Int8Array, i2: Int16Array, i4: Int32Array, f8: Float64Array };

/** The header that the page brought, with its columns as typed arrays. */
async function readReport() {
  const { header: report, content, headerEnd } = await unpacked();
  const columns = (table, names) => {
    for (const name of names ?? Object.keys(table)) table[name] = readColumn(content, headerEnd, table[name]);
  };
  for (const device of report.devices) {
    columns(device.moments);
    columns(device.allocations);
    if (device.segments) columns(device.segments);
    columns(device.modules, ["parent", "calls", "peak"]);
    if (device.stacks) columns(device.stacks, ["whose", "frame", "parent"]);
    prepare(report, device);
  }
  return report;
}

function readColumn(content, start, [type, offset, count, isChanges]) {
  const written = new COLUMN_TYPES[type](content, start + offset, count);
  if (!isChanges) return written;
  const numbers = new Float64Array(count);
  let sum = 0;
  for (let i = 0; i < count; i += 1) numbers[i] = sum += written[i];
  return numbers;
}

/** What is asked for again and again: sums over time, the tree of modules, blocks' sizes. */
function prepare(report, device) {
  const { begin, count, requested, extra, category } = device.allocations;
  const size = begin.length;
  const block = new Float64Array(size);
  for (let i = 0; i < size; i += 1) block[i] = Math.ceil(requested[i] / 512) * 512 + extra[i];
  device.allocations.block = block;

  const series = report.categories.map(() => new Float64Array(device.count + 1));
  const allocated = new Float64Array(device.count + 1);
  for (let i = 0; i < size; i += 1) {
    const end = begin[i] + count[i];
    const column = series[category[i]];
    column[begin[i]] += requested[i];
    column[end] -= requested[i];
    allocated[begin[i]] += block[i];
    allocated[end] -= block[i];
  }
  let reserved = allocated; // the CPU reserves what it allocates
  if (device.segments) {
    reserved = new Float64Array(device.count + 1);
    device.segments.begin.forEach((first, i) => {
      reserved[first] += device.segments.size[i];
      reserved[first + device.segments.count[i]] -= device.segments.size[i];
    });
    addUp(reserved);
  }
  [...series, allocated].forEach(addUp);
  device.series = { categories: series, allocated, reserved, pools: freeInPools(device) };

  device.modules.children = device.modules.name.map(() => []);
  device.modules.roots = [];
  device.modules.parent.forEach((parent, i) => {
    (parent >= 0 ? device.modules.children[parent] : device.modules.roots).push(i);
  });
}

/** Bytes that private pools hold and nothing has, at each moment. */
function freeInPools(device) {
  const free = new Float64Array(device.count + 1);
  if (!device.pooled) return free;
  const add = ({ begin, count, pooled }, size, sign) =>
    begin.forEach((first, i) => {
      free[first] += sign * pooled[i] * size[i];
      free[first + count[i]] -= sign * pooled[i] * size[i];
    });
  add(device.segments, device.segments.size, 1);
  add(device.allocations, device.allocations.block, -1);
  addUp(free);
  return free;
}

function addUp(numbers) {
  for (let i = 1; i < numbers.length; i += 1) numbers[i] += numbers[i - 1];
}

/** Bytes at a moment, in the order of partsOf, and what they come to. */
function breakdownAt(device, moment) {
  const categories = device.series.categories.map((column) => column[moment]);
  const allocated = device.series.allocated[moment];
  const reserved = device.series.reserved[moment];
  const slack = allocated - categories.reduce((sum, each) => sum + each, 0);
  const free = Math.max(0, reserved - allocated);
  const pools = Math.max(0, Math.min(free, device.series.pools[moment]));
  return {
    parts: [...categories, slack, free - pools, pools, device.outside],
    allocated,
    reserved: allocated + free,
    used: allocated + free + device.outside,
  };
}

/** The line that made an allocation: "train.py:42 in forward"; empty where it is not known. */
function lineOf(device, row) {
  const line = device.stacks ? device.allocations.line[row] : -1;
  return line >= 0 ? device.stacks.frames[line] : "";
}

/** The operator that made an allocation: "aten::mm (MmBackward0)"; empty where it is not known. */
function operatorOf(device, row) {
  const operator = device.operators.length ? device.allocations.operator[row] : 0;
  return operator > 0 ? device.operators[operator - 1] : "";
}

/** The frames of an allocation's stack, the innermost first: {text, whose}. */
function stackOf(device, row) {
  const frames = [];
  if (!device.stacks) return frames;
  const { frame, parent, whose } = device.stacks;
  for (let at = device.allocations.stack[row]; at >= 0 && frames.length < STACK_DEPTH; at = parent[at])
    frames.push({ text: device.stacks.frames[frame[at]], whose: whose[frame[at]] });
  return frames;
}

/** Rows of a table that were there at a moment. */
function aliveAt({ begin, count }, moment) {
  const rows = [];
  for (let i = 0; i < begin.length; i += 1) {
    if (begin[i] <= moment && moment < begin[i] + count[i]) rows.push(i);
  }
  return rows;
}

/** Index of the last of some rising places at or before one, at least 0. The axis counts events. */
function lastBefore(places, place) {
  let low = 0;
  let high = places.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (places[middle] <= place) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Stretches of moments in which step and phase are the same: {first, last, step, phase}. A snapshot knows none. */
function stretches(device) {
  if (!device.knows_phases) return [];
  const { step, phase } = device.moments;
  const found = [];
  for (let i = 1; i < device.count; i += 1) {
    const open = found[found.length - 1];
    if (open && open.step === step[i] && open.phase === phase[i]) open.last = i;
    else found.push({ first: i, last: i, step: step[i], phase: phase[i] });
  }
  return found;
}

/**
 * What a chart of so many pixels shows between two moments: all of them, or of each pixel's the one with most
 * allocated, so that no peak is too narrow to be seen. Three columns: the place at which each begins, the moment, and
 * what was reserved at most.
 */
function pickMoments(device, first, last, pixels) {
  const { allocated, reserved } = device.series;
  const rows = device.moments.row;
  const picked = { places: [], moments: [], reserved: [] };
  const width = last - first > pixels / 2 ? (rows[last] - rows[first] + 1) / pixels : 0;
  let i = first;
  while (i <= last) {
    const start = rows[i];
    const end = rows[first] + Math.ceil((start + 1 - rows[first]) / width) * width;
    let most = i;
    let held = reserved[i];
    for (i += 1; width && i <= last && rows[i] < end; i += 1) {
      if (allocated[i] > allocated[most]) most = i;
      if (reserved[i] > held) held = reserved[i];
    }
    picked.places.push(start);
    picked.moments.push(most);
    picked.reserved.push(held);
  }
  return picked;
}
