// Names for the controls that Gradio draws without one, so that a screen reader can tell them.
const NAMES = {".submit-button": "Send", ".stop-button": "Stop", "[role=tabpanel] .icon-wrap": "Open"};
const name = () => {
    for (const [selector, text] of Object.entries(NAMES))
        for (const one of document.querySelectorAll(`button${selector}:not([aria-label])`)) one.setAttribute("aria-label", text);
};
name();
new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
