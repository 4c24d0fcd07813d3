// What a page holds, as lists of what is wrong with it. Runs in the page.
async () => {
  const all = (selector) => [...document.querySelectorAll(`article ${selector}`)];
  const name = (element) =>
    `${element.tagName.toLowerCase()}.${element.className}`.slice(0, 80);

  const images = all("img");

  const ready = (video) =>
    video.readyState > 0 ||
    new Promise((resolve) => {
      video.addEventListener("loadedmetadata", () => resolve(true));
      video.addEventListener("error", () => resolve(false));
      setTimeout(() => resolve(false), 5000);
      video.load();
    });
  const videos = all("video");
  const playable = await Promise.all(videos.map(ready));

  // An icon is a letter of a font: one that the font lacks is drawn as any other that it lacks.
  const drawn = (style, letter) => {
    const canvas = document.createElement("canvas");
    const pen = canvas.getContext("2d");
    pen.font = `${style.fontWeight} 20px ${style.fontFamily}`;
    pen.fillText(letter, 10, 40);
    return canvas.toDataURL();
  };
  const lost = (element, part) => {
    const style = getComputedStyle(element, part);
    const letter = style.content.match(/[\ue000-\uf8ff]/)?.[0];
    const shown = letter && element.getClientRects().length > 0;
    return shown && drawn(style, letter) === drawn(style, "\uf8ff");
  };
  const parts = ["::before", "::after"];
  const everything = [...document.querySelectorAll("body *")];

  // An element sticks out if nothing between it and the page scrolls or hides.
  const width = document.documentElement.clientWidth;
  const sticks = (element) => {
    if (element.getBoundingClientRect().right <= width + 1) return false;
    for (let box = element.parentElement; box; box = box.parentElement) {
      if (box.tagName === "BODY") return true;
      if (getComputedStyle(box).overflowX !== "visible") return false;
    }
    return true;
  };
  const scrolls = document.documentElement.scrollWidth > width + 1;

  // A formula in a line of text does not break: beyond its paragraph it is cut off.
  const cut = (formula) => {
    const around = formula.closest("p, li, dd, figcaption");
    if (!around || formula.closest("table") || !formula.offsetParent) return false;
    const right = (element) => element.getBoundingClientRect().right;
    return right(formula.querySelector("mjx-math") ?? formula) > right(around) + 2;
  };

  const found = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const folded = (solution) =>
    solution.classList.contains("toggle-hidden") ||
    solution.closest("details:not([open])") !== null;

  return {
    broken_images: images.filter((i) => !i.naturalWidth).map((i) => i.src),
    images_without_alt: images.filter((i) => !i.alt.trim()).map((i) => i.src),
    broken_videos: videos.filter((_, i) => !playable[i]).map(name),
    videos_without_poster: videos.filter((v) => !v.poster).map(name),
    missing_icons: everything.filter((e) => parts.some((part) => lost(e, part))).map(name),
    untypeset: all(".math")
      .filter((m) => !m.querySelector("mjx-container"))
      .map((m) => m.textContent.slice(0, 80)),
    math_errors: all('mjx-merror, mjx-mtext[style*="color: red"]').map((e) => e.textContent),
    cut_formulas: all("mjx-container:not([display])")
      .filter(cut)
      .map((f) => f.closest("p, li, dd, figcaption").textContent.slice(0, 80)),
    too_wide: scrolls
      ? ["page", ...everything.filter(sticks).map(name)]
      : [],
    open_solutions: all(".solution").filter((s) => !folded(s)).map((s) => s.id),
    duplicate_ids: found.filter(
      (id, i) =>
        // Sphinx-proof and sphinx-exercise name the inside of every box alike.
        !id.endsWith("-content") &&
        found.indexOf(id) !== i &&
        document.getElementById(id).closest("article"),
    ),
  };
};
