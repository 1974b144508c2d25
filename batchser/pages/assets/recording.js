// A recording's page and the moments: the figure, hearing a moment, saying what it is. And the form of uploads.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  const options = { displayModeBar: false, responsive: true };
  const player = byId("player");
  const form = byId("label-form");
  const figure = byId("recording-figure");
  const buttons = [...document.querySelectorAll(".hear")];
  let current = null;

  // A moment: from a button, which may have its call's address itself, or from a click into the figure.
  const momentOf = (button) => ({ ...figure?.dataset, ...button.dataset, button });
  const hear = async (moment) => {
    current = moment;
    player.src = `${moment.sound}&start=${moment.start}&end=${moment.end}`;
    byId("player-state").textContent =
      `${moment.call}: ${clock(moment.start)} to ${clock(moment.end)}, the model says ${moment.emotion}.`;
    if (form) {
      form.hidden = false;
      byId("label-state").textContent = "";
      form.elements.emotion.value = ""; // what the model says must not be a listener's answer
    }
    try {
      await player.play();
    } catch (error) {
      if (error.name === "AbortError") return; // another moment was chosen meanwhile
      const answer = await fetch(player.src);
      const text = answer.ok ? "the browser cannot play it" : await answer.text();
      const page = new DOMParser().parseFromString(text, "text/html");
      byId("player-state").textContent = `Cannot be heard: ${page.querySelector(".problem")?.textContent ?? text}`;
    }
  };
  buttons.forEach((button) => button.addEventListener("click", () => hear(momentOf(button))));

  const drawn = async () => {
    let shown = JSON.parse(byId("timeline").textContent);
    if (figure.dataset.source) {
      const answer = await (await fetch(figure.dataset.source)).json();
      byId("figure-state").textContent = answer.problem ? `No picture: ${answer.problem}` : "";
      shown = answer.figure ?? shown;
    }
    await Plotly.newPlot(figure, shown.data, shown.layout, options);
    figure.dataset.drawn = "yes";
    const moments = JSON.parse(byId("moments").textContent);
    figure.on("plotly_click", (event) => {
      const second = event.points[0].x;
      const hit = moments.find(([start, end]) => second >= start && second < end);
      if (hit && player) {
        const [start, end, emotion] = hit;
        const button = buttons.find((one) => Number(one.dataset.start) === start);
        hear({ ...figure.dataset, start, end, emotion, button });
      } else if (player) byId("player-state").textContent = `${clock(second)}: no window was scored there.`;
    });
  };
  if (figure) drawn();

  if (form) {
    form.elements.listener.value = localStorage.getItem("listener") ?? "";
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const { call, channel, start, end } = current;
      const said = {
        call_id: call, channel: Number(channel), start_s: Number(start), end_s: Number(end),
        emotion: form.elements.emotion.value, listener: form.elements.listener.value, note: form.elements.note.value,
      };
      localStorage.setItem("listener", said.listener);
      const answer = await fetch("/labels", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(said),
      });
      byId("label-state").textContent = answer.ok
        ? `Saved. Labels by now: ${(await answer.json()).saved}.` : `Not saved (${answer.status}).`;
      const cell = current.button?.closest("tr")?.querySelector(".said");
      if (answer.ok && cell) cell.textContent = said.emotion;
    });
  }

  const upload = byId("upload-form");
  if (upload) upload.addEventListener("submit", () => { byId("upload-state").textContent = "The recording is being scored …"; });
})();
