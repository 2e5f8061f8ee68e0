// Renders the formulas of a page; KaTeX is a file of this site.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent.trim();
    const display = source.startsWith("\\[");
    katex.render(source.slice(2, -2), element, { displayMode: display, throwOnError: false });
  }
  // headings with formulas, as the navigation repeats them
  for (const element of document.querySelectorAll(".md-nav__link .md-ellipsis, .md-header__topic .md-ellipsis")) {
    if (!element.textContent.includes("\\(")) continue;
    const parts = element.textContent.trim().split(/\\\((.*?)\\\)/);
    element.replaceChildren(
      ...parts.map((part, i) => {
        if (i % 2 === 0) return document.createTextNode(part);
        const formula = document.createElement("span");
        katex.render(part, formula, { throwOnError: false });
        return formula;
      }),
    );
  }
});
