// Draw strokes on a canvas, send the picture to the server at every change, and show the text that it reads.

const drawing = document.getElementById("drawing");
const boxes = document.getElementById("boxes");
const text = document.getElementById("text");
const message = document.getElementById("message");
const announcement = document.getElementById("announcement");
const predictions = document.getElementById("predictions");
const digitButtons = document.getElementById("digits");
const table = document.querySelector("table");
const brush = document.getElementById("brush");
const file = document.getElementById("file");
const undoButton = document.getElementById("undo");
const clearButton = document.getElementById("clear");
const context = drawing.getContext("2d", { willReadFrequently: true }); // for every request
const MAX_PICTURE_SIDE = 1280; // pixels; larger pictures are scaled down before they are sent
const ANNOUNCEMENT_DELAY = 700; // milliseconds; screen readers announce only texts that stay
const KEYBOARD_STEP = 10; // canvas pixels
const LARGE_KEYBOARD_STEP = 40;
const darkScheme = matchMedia("(prefers-color-scheme: dark)");

let strokes = []; // {width, points: [[x, y], …]} in canvas pixels
let openedFile = null;
let picture = null; // ImageBitmap of the opened file, drawn below the strokes
let currentStroke = null;
let usingKeyboard = false; // whether the last input came from the keyboard: then its cursor is shown
let cursor = [drawing.width / 2, drawing.height / 2]; // the pen's position when it is moved with the keyboard

function render(withCursor = document.activeElement === drawing && usingKeyboard) {
  context.fillStyle = darkScheme.matches ? "#000" : "#fff";
  context.fillRect(0, 0, drawing.width, drawing.height);
  if (picture) context.drawImage(picture, ...pictureArea());
  // Red is visible on light and on dark pictures.
  context.strokeStyle = picture ? "#d33" : darkScheme.matches ? "#fff" : "#000";
  context.lineCap = context.lineJoin = "round";
  for (const { width, points } of strokes) {
    context.lineWidth = width;
    context.beginPath();
    const [x, y] = points[0];
    context.moveTo(x, y);
    context.lineTo(x + 0.01, y); // a line of length 0 would not be drawn, so neither would a dot
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
  undoButton.disabled = clearButton.disabled = !strokes.length && !picture;
  if (withCursor) {
    context.strokeStyle = "#d33";
    context.lineWidth = 3;
    context.strokeRect(cursor[0] - 8, cursor[1] - 8, 16, 16);
  }
}

// The position and size of the opened picture on the canvas.
function pictureArea() {
  const scale = Math.min(drawing.width / picture.width, drawing.height / picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  return [(drawing.width - width) / 2, (drawing.height - height) / 2, width, height];
}

// There is one request at a time; of the changes during a request, only the latest is sent after it.
const CANVAS = "canvas"; // the source of a request: the canvas, or else a file {content, width} of the opened picture
let pendingSource = null;
let requestInProgress = false;

function requestPrediction(source) {
  pendingSource = source;
  if (!requestInProgress) sendPending();
}

async function sendPending() {
  requestInProgress = true;
  predictions.ariaBusy = "true";
  while (pendingSource) {
    const source = pendingSource;
    pendingSource = null;
    if (source === CANVAS && !strokes.length && !picture) {
      showMessage("The canvas is empty.");
      continue;
    }
    const body = source === CANVAS ? canvasPng() : source.content;
    let response, content;
    try {
      response = await fetch("digits", { method: "POST", body });
      content = await response.json();
    } catch {
      showMessage("The server does not respond.");
      continue;
    }
    if (response.ok) showLines(content.lines, source);
    else if (!currentStroke) showMessage(content.error); // an unfinished digit is often invalid
  }
  requestInProgress = false;
  predictions.ariaBusy = "false";
}

function canvasPng() {
  render(false);
  const content = encodePng(drawing);
  render();
  return content;
}

// Unlike toDataURL, toBlob waits until the browser is idle, which can take seconds.
function encodePng(canvas) {
  const [, base64] = canvas.toDataURL("image/png").split(",");
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

let announcementTimer;

function setMessage(content, spoken = content) {
  message.textContent = content;
  clearTimeout(announcementTimer);
  announcementTimer = setTimeout(() => (announcement.textContent = spoken), ANNOUNCEMENT_DELAY);
}

function showMessage(content) {
  setMessage(content);
  text.replaceChildren();
  boxes.replaceChildren();
  predictions.hidden = true;
}

function showLines(lines, source) {
  text.replaceChildren(...lines.map((line) => createElement("span", { textContent: line.text })));
  const digits = lines.flatMap((line) => line.digits);
  const unread = digits.find((digit) => digit.label === null);
  const confidence = lines.map((line) => formatPercent(line.confidence)).join(", ");
  const status = unread ? `?: ${unread.reason}` : `Confidence: ${confidence}`;
  setMessage(status, `${lines.map((line) => line.text).join(", ")}. ${status}`);
  const isShown = source === CANVAS || picture; // some browsers cannot show every file that the server can read
  boxes.replaceChildren(...(isShown ? digits : []).map((digit) => createBox(digit, source)));
  digitButtons.replaceChildren(...digits.map((digit, index) => createDigitButton(digit, () => select(digits, index))));
  select(digits, digits.length - 1);
  predictions.hidden = false;
}

function createBox({ label, box }, source) {
  const [left, top, width] = source === CANVAS ? [0, 0, drawing.width] : pictureArea();
  const scale = width / (source === CANVAS ? drawing.width : source.width);
  const element = createElement("i", { className: label === null ? "unread" : "" });
  element.style.left = `${(100 * (left + box.left * scale)) / drawing.width}%`;
  element.style.top = `${(100 * (top + box.top * scale)) / drawing.height}%`;
  element.style.width = `${(100 * box.width * scale) / drawing.width}%`;
  element.style.height = `${(100 * box.height * scale) / drawing.height}%`;
  return element;
}

function createDigitButton({ label, confidence, image }, action) {
  const canvas = createElement("canvas", { width: 28, height: 28 });
  const pixels = image.flat().flatMap((value) => [value, value, value, 255]);
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), 28), 0, 0);
  const caption = createElement("span", { textContent: `${label ?? "?"} (${formatPercent(confidence)})` });
  const button = createElement("button", { type: "button" }, canvas, caption);
  button.addEventListener("click", action);
  return button;
}

function select(digits, selected) {
  [...digitButtons.children].forEach((button, index) => button.setAttribute("aria-pressed", index === selected));
  [...boxes.children].forEach((box, index) => box.classList.toggle("selected", digits.length > 1 && index === selected));
  const { models } = digits[selected];
  const names = Object.keys(models);
  const labels = Object.keys(models[names[0]].probabilities);
  table.tHead.replaceChildren(
    createElement("tr", {}, createElement("td"), ...names.map((name) => createHeader(name, "col"))),
  );
  table.tBodies[0].replaceChildren(
    ...labels.map((label) =>
      createElement(
        "tr",
        {},
        createHeader(label, "row"),
        ...names.map((name) => createProbabilityCell(models[name], label)),
      ),
    ),
  );
}

function createProbabilityCell({ label: mostProbable, probabilities }, label) {
  const percent = formatPercent(probabilities[label]);
  const bar = createElement("i");
  bar.style.width = percent;
  const className = label === mostProbable ? "most-probable" : "";
  return createElement("td", { className }, bar, createElement("span", { textContent: percent }));
}

function createHeader(textContent, scope) {
  return createElement("th", { textContent, scope });
}

function createElement(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function formatPercent(probability) {
  return `${(100 * probability).toFixed(1)}%`;
}

function renderAndPredict() {
  render();
  requestPrediction(CANVAS);
}

function canvasPoint(event) {
  const box = drawing.getBoundingClientRect();
  const scale = drawing.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

drawing.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  drawing.setPointerCapture(event.pointerId);
  usingKeyboard = false;
  currentStroke = { width: Number(brush.value), points: [canvasPoint(event)] };
  strokes.push(currentStroke);
  renderAndPredict();
});

drawing.addEventListener("pointermove", (event) => {
  if (!currentStroke || !drawing.hasPointerCapture(event.pointerId)) return;
  const events = event.getCoalescedEvents?.() ?? [];
  currentStroke.points.push(...(events.length ? events : [event]).map(canvasPoint));
  renderAndPredict();
});

for (const type of ["pointerup", "pointercancel", "blur"]) drawing.addEventListener(type, liftPen);

function liftPen() {
  if (currentStroke) requestPrediction(CANVAS); // again, because errors are shown only when the stroke is finished
  currentStroke = null;
  render();
}

function undo() {
  if (currentStroke) announcement.textContent = "Pen up";
  if (strokes.length) strokes.pop();
  else picture = null;
  currentStroke = null;
  renderAndPredict();
}

function reset() {
  strokes = [];
  picture = openedFile = currentStroke = null;
}

function clear() {
  reset();
  renderAndPredict();
}

for (const [button, action] of [[undoButton, undo], [clearButton, clear]]) {
  button.addEventListener("click", () => {
    action();
    if (button.disabled) drawing.focus(); // a disabled button loses the keyboard focus
  });
}
darkScheme.addEventListener("change", renderAndPredict);

const ARROW_KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function lowerOrLiftPen() {
  if (currentStroke) liftPen();
  else strokes.push((currentStroke = { width: Number(brush.value), points: [cursor] }));
  announcement.textContent = currentStroke ? "Pen down" : "Pen up";
}

drawing.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key in ARROW_KEYS) {
    const step = event.shiftKey ? LARGE_KEYBOARD_STEP : KEYBOARD_STEP;
    const direction = ARROW_KEYS[event.key];
    cursor = cursor.map((value, axis) => Math.min(Math.max(value + direction[axis] * step, 0), drawing.width));
    if (currentStroke) currentStroke.points.push(cursor);
  } else if (event.key === " ") {
    if (!event.repeat) lowerOrLiftPen();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
  usingKeyboard = true;
  if (currentStroke) renderAndPredict();
  else render();
});

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z") {
    event.preventDefault();
    undo();
  }
});

async function openPicture(blob) {
  if (!blob) return;
  reset();
  openedFile = blob;
  const decoded = await createImageBitmap(blob).catch(() => null); // then the server's error is shown
  if (openedFile !== blob) return; // cleared, or another one opened
  picture = decoded;
  render();
  const isLarge = picture && Math.max(picture.width, picture.height) > MAX_PICTURE_SIDE;
  const reduced = isLarge && scaleDown(picture);
  requestPrediction({ content: reduced ? encodePng(reduced) : blob, width: (reduced || picture)?.width });
}

function scaleDown(picture) {
  const scale = MAX_PICTURE_SIDE / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  return canvas;
}

file.addEventListener("change", () => {
  openPicture(file.files[0]);
  file.value = ""; // so that the same file can be opened again
});

document.addEventListener("paste", (event) => openPicture(event.clipboardData.files[0]));

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});

for (const type of ["dragleave", "drop"]) {
  document.addEventListener(type, () => document.body.classList.remove("dropping"));
}

document.addEventListener("drop", (event) => {
  event.preventDefault();
  openPicture(event.dataTransfer.files[0]);
});

render();
