// Pictures to begin with, drawn here: nothing is fetched.

import { make } from "./dom.js";
import { say } from "./i18n.js";

const WHITE = "#ffffff";

function canvasOf(width, height, draw) {
  const canvas = make("canvas", { width, height });
  const pen = canvas.getContext("2d");
  pen.fillStyle = WHITE;
  pen.fillRect(0, 0, width, height);
  draw(pen);
  return canvas;
}

function shapes(pen) {
  const circle = (x, y, radius, colour) => {
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  };
  circle(110, 120, 62, "#e03131");
  circle(330, 250, 44, "#2f9e44");
  pen.fillStyle = "#1c7ed6";
  pen.fillRect(250, 50, 130, 100);
  pen.fillStyle = "#f59f00";
  pen.beginPath();
  pen.moveTo(130, 210);
  pen.lineTo(210, 320);
  pen.lineTo(50, 320);
  pen.fill();
}

function receipt(pen) {
  pen.fillStyle = "#111111";
  const line = (left, right, y, font = "22px ui-monospace, monospace") => {
    pen.font = font;
    pen.textAlign = "left";
    pen.fillText(left, 36, y);
    pen.textAlign = "right";
    pen.fillText(right, 344, y);
  };
  pen.textAlign = "center";
  pen.font = "700 28px system-ui, sans-serif";
  pen.fillText("CORNER CAFE", 190, 56);
  pen.fillRect(36, 78, 308, 2);
  line("Tea", "2.40", 120);
  line("2 x Bun", "3.60", 156);
  line("Soup", "5.50", 192);
  pen.fillRect(36, 216, 308, 2);
  line("TOTAL", "11.50", 258, "700 26px ui-monospace, monospace");
  line("Cash", "20.00", 298);
  line("Change", "8.50", 332);
}

function chart(pen) {
  pen.fillStyle = "#111111";
  pen.font = "700 22px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillText("Visitors by season", 220, 40);
  const bars = [["Spring", 120, "#4263eb"], ["Summer", 210, "#f59f00"], ["Autumn", 150, "#2f9e44"], ["Winter", 70, "#e03131"]];
  bars.forEach(([name, height, colour], index) => {
    const x = 50 + index * 95;
    pen.fillStyle = colour;
    pen.fillRect(x, 290 - height, 60, height);
    pen.fillStyle = "#111111";
    pen.font = "18px system-ui, sans-serif";
    pen.fillText(name, x + 30, 314);
    pen.fillText(String(height), x + 30, 282 - height);
  });
  pen.fillRect(36, 290, 380, 2);
}

const EXAMPLES = [
  { words: "exampleShapes", name: "shapes.png", task: "locate", size: [440, 360], draw: shapes, question: { en: "red circle", zh: "红色的圆" } },
  { words: "exampleReceipt", name: "receipt.png", task: "ask", size: [380, 360], draw: receipt, question: { en: "What is the total?", zh: "总金额是多少？" } },
  { words: "exampleChart", name: "chart.png", task: "ask", size: [440, 340], draw: chart, question: { en: "Which bar is the tallest?", zh: "哪根柱子最高？" } },
  { words: "exampleDescribe", name: "shapes.png", task: "describe", size: [440, 360], draw: shapes, question: { en: "", zh: "" } },
];

/** Return the buttons. `use(file, task, question)` runs when one is pressed. */
export function exampleButtons(language, use) {
  return EXAMPLES.map(({ words, name, task, size, draw, question }) => {
    const canvas = canvasOf(...size, draw);
    canvas.setAttribute("aria-hidden", "true");
    const button = make("button", { type: "button", className: "example" }, canvas, make("span", { textContent: say(words) }));
    button.addEventListener("click", async () => {
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
      use(new File([blob], name, { type: "image/png" }), task, question[language]);
    });
    return button;
  });
}
