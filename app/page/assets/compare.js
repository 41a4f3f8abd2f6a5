// Keys for the ballot, wherever the focus is but in a text field: 1, 2, ... choose an answer, 0 none, Enter votes.
document.addEventListener("keydown", (event) => {
    const ballot = document.querySelector("#prefer"), at = document.activeElement;
    if (!ballot || !ballot.offsetParent || event.ctrlKey || event.altKey || event.metaKey) return;
    if (at && (at.tagName === "TEXTAREA" || (at.tagName === "INPUT" && !["radio", "checkbox"].includes(at.type)))) return;
    const choices = [...ballot.querySelectorAll("input[type=radio]")];
    if (/^[0-9]$/.test(event.key)) {
        const chosen = event.key === "0" ? choices.at(-1) : choices[Number(event.key) - 1];
        if (chosen) { chosen.click(); chosen.focus(); event.preventDefault(); }
    } else if (event.key === "Enter" && at && at.type === "radio") document.querySelector("#vote").click();
});
// A new question comes to the top of the box; while its answers are written, nothing moves.
const box = element.closest("#rounds") || element;
box.tabIndex = 0; box.setAttribute("role", "region"); box.setAttribute("aria-label", "Questions and answers");
let questions = 0;
watch("value", () => {
    window.abctuneTypeset?.(element);
    const asked = element.querySelectorAll(".asked");
    if (asked.length !== questions && asked.length) box.scrollTop += asked[asked.length - 1].getBoundingClientRect().top - box.getBoundingClientRect().top - 12;
    questions = asked.length;
});
