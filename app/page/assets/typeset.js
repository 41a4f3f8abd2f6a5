// Formulas, by the KaTeX that Gradio brings. `trust: false` is KaTeX's default: no links, no images, no attributes.
(() => {
    const known = new Map();
    let katex = null;
    const typeset = (root) => {
        if (!katex) return;
        for (const one of root.querySelectorAll(".math:not([data-set])")) {
            const text = one.textContent, display = one.classList.contains("display");
            one.setAttribute("data-set", "");
            if (!known.has(text)) {
                let html = null;  // what KaTeX cannot read stays as it was written
                try { html = katex.renderToString(text.replace(/^(\$\$?|\\[([])|(\$\$?|\\[)\]])$/g, ""), {displayMode: display, maxSize: 20, maxExpand: 200}); }
                catch { /* a formula that is still being written, or none */ }
                if (known.size > 500) known.clear();
                known.set(text, html);
            }
            if (known.get(text) !== null) one.innerHTML = known.get(text);
        }
    };
    window.abctuneTypeset = typeset;
    const style = document.createElement("link");
    style.rel = "stylesheet"; style.href = STYLE;
    document.head.append(style);
    import(new URL(SCRIPT, document.baseURI)).then((module) => { katex = module.default; typeset(document); });
})();
