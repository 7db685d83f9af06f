// Draws strokes, sends the picture to the server while they are drawn, and shows what each model sees.

const drawing = document.getElementById("drawing");
const seen = document.getElementById("seen").getContext("2d");
const answer = document.getElementById("answer");
const spoken = document.getElementById("spoken");
const table = document.querySelector("table");
const brush = document.getElementById("brush");
const file = document.getElementById("file");
const undo = document.getElementById("undo");
const clear = document.getElementById("clear");
const context = drawing.getContext("2d", { willReadFrequently: true }); // with each answer
const LARGEST = 1280; // pixels of a side: of larger pictures, a smaller one is sent
const dark = matchMedia("(prefers-color-scheme: dark)");

let strokes = []; // {width, points: [[x, y], …]}, in the canvas's pixels
let picture = null; // an opened one, under the strokes
let pen = null; // the stroke that is being drawn
let keyboard = false; // whether the last stroke or step came from there
let cursor = [drawing.width / 2, drawing.height / 2]; // of the keyboard

function render(withCursor = document.activeElement === drawing && keyboard) {
  context.fillStyle = dark.matches ? "#000" : "#fff";
  context.fillRect(0, 0, drawing.width, drawing.height);
  if (picture) {
    const scale = Math.min(drawing.width / picture.width, drawing.height / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    context.drawImage(picture, (drawing.width - width) / 2, (drawing.height - height) / 2, width, height);
  }
  context.strokeStyle = picture ? "#d33" : dark.matches ? "#fff" : "#000"; // pictures are light or dark
  context.lineCap = context.lineJoin = "round";
  for (const { width, points } of strokes) {
    context.lineWidth = width;
    context.beginPath();
    const [x, y] = points[0];
    context.moveTo(x, y);
    context.lineTo(x + 0.01, y); // else a dot would not show
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
  undo.disabled = clear.disabled = !strokes.length && !picture;
  if (withCursor) {
    context.strokeStyle = "#d33";
    context.lineWidth = 3;
    context.strokeRect(cursor[0] - 8, cursor[1] - 8, 16, 16);
  }
}

// One request at a time: what changes meanwhile is sent when its answer is here.
let waiting = null;
let asking = false;

function ask(picture) {
  waiting = picture;
  if (!asking) askNext();
}

async function askNext() {
  asking = true;
  while (waiting) {
    const next = waiting;
    waiting = null;
    if (next === "drawing" && !strokes.length && !picture) {
      show("Nothing is drawn yet.");
      continue;
    }
    const body = next === "drawing" ? drawn() : next;
    try {
      const response = await fetch("digits", { method: "POST", body });
      const content = await response.json();
      if (response.ok) showModels(content);
      else if (!pen) show(content.error); // what is still being drawn may well be no digit yet
    } catch {
      show("The server does not answer.");
    }
  }
  asking = false;
}

function drawn() {
  render(false);
  const content = png(drawing);
  render();
  return content;
}

// toBlob would wait until the browser is idle, which it may not be for seconds.
function png(canvas) {
  const [, base64] = canvas.toDataURL("image/png").split(",");
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// Read aloud is only what stays for a moment.
let announcement;

function say(text) {
  answer.textContent = text;
  clearTimeout(announcement);
  announcement = setTimeout(() => (spoken.textContent = text), 700);
}

function show(text) {
  say(text);
  seen.clearRect(0, 0, 28, 28);
  table.hidden = true;
}

function showModels({ image, models }) {
  const pixels = image.flat().flatMap((value) => [value, value, value, 255]);
  seen.putImageData(new ImageData(new Uint8ClampedArray(pixels), 28), 0, 0);
  const names = Object.keys(models);
  const likeliest = ({ label, probabilities }) => `${label} (${percent(probabilities[label])})`;
  say(names.map((name) => `${name}: ${likeliest(models[name])}`).join(", "));
  const classes = [...new Set(names.flatMap((name) => Object.keys(models[name].probabilities)))];
  table.tHead.replaceChildren(row([cell("td", ""), ...names.map((name) => cell("th", name, { scope: "col" }))]));
  table.tBodies[0].replaceChildren(
    ...classes.map((label) =>
      row([cell("th", label, { scope: "row" }), ...names.map((name) => probability(models[name], label))]),
    ),
  );
  table.hidden = false;
}

function probability(model, label) {
  const share = model.probabilities[label] ?? 0;
  const bar = document.createElement("i");
  bar.style.width = percent(share);
  const number = document.createElement("span");
  number.textContent = percent(share);
  const element = document.createElement("td");
  element.className = label === model.label ? "likeliest" : "";
  element.append(bar, number);
  return element;
}

function row(cells) {
  const element = document.createElement("tr");
  element.append(...cells);
  return element;
}

function cell(tag, text, attributes) {
  return Object.assign(document.createElement(tag), { textContent: text }, attributes);
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

function changed() {
  render();
  ask("drawing");
}

function place(event) {
  const box = drawing.getBoundingClientRect();
  const scale = drawing.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

drawing.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  drawing.setPointerCapture(event.pointerId);
  keyboard = false;
  pen = { width: Number(brush.value), points: [place(event)] };
  strokes.push(pen);
  changed();
});

drawing.addEventListener("pointermove", (event) => {
  if (!pen || !drawing.hasPointerCapture(event.pointerId)) return;
  const events = event.getCoalescedEvents?.() ?? [];
  pen.points.push(...(events.length ? events : [event]).map(place));
  changed();
});

for (const end of ["pointerup", "pointercancel", "blur"]) drawing.addEventListener(end, lift);

function lift() {
  if (pen) ask("drawing"); // once more: what was wrong with it until now was not shown
  pen = null;
  render();
}

function takeBack() {
  if (pen) spoken.textContent = "Pen up";
  if (strokes.length) strokes.pop();
  else picture = null;
  pen = null;
  changed();
}

function clearAll() {
  strokes = [];
  picture = pen = null;
  changed();
}

for (const [button, act] of [[undo, takeBack], [clear, clearAll]]) {
  button.addEventListener("click", () => {
    act();
    if (button.disabled) drawing.focus(); // else the focus would be lost
  });
}
dark.addEventListener("change", changed);

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function lowerOrLift() {
  if (pen) lift();
  else strokes.push((pen = { width: Number(brush.value), points: [cursor] }));
  spoken.textContent = pen ? "Pen down" : "Pen up";
}

drawing.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key in ARROWS) {
    const step = event.shiftKey ? 40 : 10;
    cursor = cursor.map((value, axis) => Math.min(Math.max(value + ARROWS[event.key][axis] * step, 0), drawing.width));
    if (pen) pen.points.push(cursor);
  } else if (event.key === " ") {
    if (!event.repeat) lowerOrLift();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clearAll();
  } else {
    return;
  }
  event.preventDefault();
  keyboard = true;
  if (pen) changed();
  else render();
});

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z") {
    event.preventDefault();
    takeBack();
  }
});

async function open(blob) {
  if (!blob) return;
  strokes = [];
  picture = pen = null;
  try {
    picture = await createImageBitmap(blob);
  } catch {
    // the server says what is wrong with it
  }
  render();
  ask(picture && Math.max(picture.width, picture.height) > LARGEST ? png(small(picture)) : blob);
}

function small(picture) {
  const scale = LARGEST / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  return canvas;
}

file.addEventListener("change", () => {
  open(file.files[0]);
  file.value = "";
});

document.addEventListener("paste", (event) => open(event.clipboardData.files[0]));

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});

for (const end of ["dragleave", "drop"]) {
  document.addEventListener(end, () => document.body.classList.remove("dropping"));
}

document.addEventListener("drop", (event) => {
  event.preventDefault();
  open(event.dataTransfer.files[0]);
});

render();
