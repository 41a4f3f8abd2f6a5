"""The fixed prompts that models are asked while they train and when they are evaluated.

A mix of both kinds of data the mixes draw on: small talk, and instructions about Python code.
"""

PROMPTS = (
    "What superpower do you wish you had, and why?",
    "I had a long day at work. What should I do tonight?",
    "What is the best place you have ever travelled to?",
    "Do you think it is possible to have a pet shark?",
    "Give me three tips for a good night's sleep.",
    "Explain in two sentences why the sky is blue.",
    "Why should I avoid mutable default arguments in Python?",
    "What does the Python lint rule `unused-import` check for, and why does it matter?",
    "Improve this Python code:\n```python\nif x == None:\n    print('nothing')\n```",
    "Write a Python function that returns the largest number of a list.",
)
