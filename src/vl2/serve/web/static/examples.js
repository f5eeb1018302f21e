// Pictures to begin with, drawn here: nothing is fetched. Each is of a kind that the built-in model knows, and says beside
// what it shows what the right answer is: a test asks that model, and compares.

import { make } from "./dom.js";
import { say } from "./i18n.js";

const FONT = 'Arial, "Liberation Sans", Roboto, sans-serif'; // much alike wherever the page is opened
const COLORS = { red: "#d62828", blue: "#2654c8", green: "#24913e", yellow: "#f5cd23", orange: "#f3801a" };

const CHART = { title: "Visitors", bars: [["Lisbon", 62], ["Oslo", 35], ["Leeds", 48], ["Cairo", 81]] };
const WORD = "Garden";
// Places are the left, the top and the side of the square around a shape, in pixels.
const STARS = [
  { shape: "star", color: "blue", place: [12, 14, 44] },
  { shape: "square", color: "orange", place: [70, 20, 40] },
  { shape: "star", color: "blue", place: [116, 60, 44] },
  { shape: "star", color: "blue", place: [40, 104, 44] },
];
const SHAPES = [
  { shape: "triangle", color: "green", place: [14, 20, 48] },
  { shape: "circle", color: "red", place: [100, 16, 44] },
  { shape: "square", color: "blue", place: [24, 104, 44] },
  { shape: "star", color: "orange", place: [104, 96, 52] },
];

const OUTLINES = {
  circle: (pen) => pen.arc(0.5, 0.5, 0.5, 0, 2 * Math.PI),
  square: (pen) => pen.rect(0, 0, 1, 1),
  triangle: (pen) => polygon(pen, [[0.5, 0], [1, 1], [0, 1]]),
  star: (pen) => polygon(pen, corners(10).map(([x, y], n) => (n % 2 ? [0.5 + 0.2 * x, 0.5 + 0.2 * y] : [0.5 + 0.5 * x, 0.5 + 0.5 * y]))),
};

function corners(count) {
  return Array.from({ length: count }, (_, n) => (2 * Math.PI * n) / count - Math.PI / 2).map((a) => [Math.cos(a), Math.sin(a)]);
}

function polygon(pen, points) {
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.closePath();
}

function drawShapes(pen, shapes) {
  for (const { shape, color, place: [left, top, side] } of shapes) {
    pen.save();
    pen.translate(left, top);
    pen.scale(side, side);
    pen.beginPath();
    OUTLINES[shape](pen);
    pen.restore();
    pen.fillStyle = COLORS[color];
    pen.fill();
  }
}

function drawChart(pen, font) {
  const [left, right, top, bottom] = [10, 310, 42, 136];
  const room = (right - left) / CHART.bars.length;
  const most = Math.max(...CHART.bars.map(([, value]) => value));
  pen.font = `17px ${font}`;
  pen.textAlign = "center";
  pen.fillStyle = "#141414";
  pen.fillText(CHART.title, 160, 18);
  CHART.bars.forEach(([name, value], n) => {
    const middle = left + (n + 0.5) * room;
    const y = bottom - ((bottom - top) * value) / most;
    pen.fillStyle = COLORS.blue;
    pen.fillRect(middle - 0.35 * room, y, 0.7 * room, bottom - y);
    pen.fillStyle = "#141414";
    pen.fillText(String(value), middle, y - 4);
    pen.fillText(name, middle, bottom + 18);
  });
  pen.fillRect(left, bottom, right - left, 1);
}

function drawWord(pen, font) {
  pen.font = `30px ${font}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillStyle = "#26262e";
  pen.fillText(WORD, 75, 28);
}

function boxOf(shape, color) {
  const [left, top, side] = SHAPES.find((one) => one.shape === shape && one.color === color).place;
  return [left, top, left + side, top + side];
}

/** `truth`: the text of a right answer, or the box in pixels. `draw(pen, font)` draws on white. */
export const EXAMPLES = [
  {
    words: "exampleLocate", name: "shapes.png", task: "locate", size: [168, 168],
    draw: (pen) => drawShapes(pen, SHAPES),
    question: { en: "green triangle", zh: "绿色的三角形" },
    truth: { box: boxOf("triangle", "green") },
  },
  {
    words: "exampleCount", name: "stars.png", task: "ask", size: [168, 168],
    draw: (pen) => drawShapes(pen, STARS),
    question: { en: "How many blue stars are there?", zh: "图中有几颗蓝色的星星？" },
    truth: { text: String(STARS.filter(({ shape }) => shape === "star").length) },
  },
  {
    words: "exampleChart", name: "chart.png", task: "ask", size: [320, 160],
    draw: drawChart,
    question: { en: "What value does the chart show for Oslo?", zh: "图中Oslo的数值是多少？" },
    truth: { text: String(CHART.bars.find(([name]) => name === "Oslo")[1]) },
  },
  {
    words: "exampleRead", name: "word.png", task: "ask", size: [150, 56],
    draw: drawWord,
    question: { en: "What does the image say?", zh: "图片上写着什么？" },
    truth: { text: WORD },
  },
];

/** Draw an example, larger by `scale` for sharp eyes. */
export function canvasOf({ size: [width, height], draw }, { font = FONT, scale = 1 } = {}) {
  const canvas = make("canvas", { width: width * scale, height: height * scale });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, width, height);
  draw(pen, font);
  return canvas;
}

/** Return the buttons. `use(file, task, question)` runs when one is pressed. */
export function exampleButtons(language, use) {
  return EXAMPLES.map((example) => {
    const shown = canvasOf(example, { scale: 2 });
    shown.setAttribute("aria-hidden", "true");
    const words = make("span", { textContent: say(example.words) });
    const button = make("button", { type: "button", className: "example" }, shown, words);
    button.addEventListener("click", async () => {
      const blob = await new Promise((resolve) => canvasOf(example).toBlob(resolve, "image/png"));
      use(new File([blob], example.name, { type: "image/png" }), example.task, example.question[language]);
    });
    return button;
  });
}
