
"use strict";
(() => {
  const every = 1000, patience = 10000, points = 60;
  const lost = document.getElementById("lost");
  const page = document.querySelector("main");
  const rates = [];
  let last = Date.now();

  // morph makes an element like another and leaves alone what is alike already:
  // what is open stays open, what is selected stays selected.
  function morph(have, want) {
    if (have.nodeType !== Node.ELEMENT_NODE) {
      if (have.data !== want.data) have.data = want.data;
      return;
    }
    if (have.hasAttribute("data-keep")) return;
    for (const {name} of [...have.attributes]) {
      if (!want.hasAttribute(name) && name !== "open") have.removeAttribute(name);
    }
    for (const {name, value} of want.attributes) {
      if (have.getAttribute(name) !== value) have.setAttribute(name, value);
    }
    morphChildren(have, want);
  }

  const key = node => node.dataset ? node.dataset.key : undefined;
  const alike = (a, b) => a.nodeName === b.nodeName && key(a) === key(b);

  function morphChildren(have, want) {
    let at = have.firstChild;
    for (const next of want.childNodes) {
      let found = at && alike(at, next) ? at : null;
      if (!found && key(next)) found = [...have.children].find(child => alike(child, next)) || null;
      if (!found) {
        have.insertBefore(document.importNode(next, true), at);
        continue;
      }
      if (found === at) at = at.nextSibling;
      else have.insertBefore(found, at);
      morph(found, next);
    }
    while (at) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
  }

  // draw adds a point to the line of requests per second.
  function draw() {
    rates.push(Number(page.dataset.rate) || 0);
    if (rates.length > points) rates.shift();
    const most = Math.max(1, ...rates), start = points - rates.length;
    const line = rates.map((rate, i) => `${i ? "L" : "M"}${(start + i).toFixed(1)} ${(28 - 26 * rate / most).toFixed(2)}`).join("");
    const spark = document.getElementById("rates");
    spark.querySelector(".line").setAttribute("d", line);
    spark.querySelector(".area").setAttribute("d", `${line}L${points - 1} 30L${start} 30Z`);
  }

  async function refresh() {
    const answer = await fetch("fragment", {cache: "no-store", signal: AbortSignal.timeout(patience)});
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const want = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    if (want.dataset.edition !== page.dataset.edition) return location.reload();
    morph(page, want);
    document.title = page.dataset.title;
    draw();
  }

  async function tick() {
    if (!document.hidden) {
      try {
        await refresh();
        last = Date.now();
        lost.hidden = true;
      } catch {
        lost.textContent = `No answer from the server for ${Math.round((Date.now() - last) / 1000)} s. Trying again.`;
        lost.hidden = false;
      }
      document.body.classList.toggle("lost", !lost.hidden);
    }
    setTimeout(tick, every);
  }

  draw();
  setTimeout(tick, every);
})();
