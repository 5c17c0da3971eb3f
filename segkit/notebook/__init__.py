"""What only the notebooks need: parameters, figures, explorers, exercises, rendering.

`parameters` checks what papermill injected, `plots` draws, `explore` makes a figure move under sliders,
`exercises` holds the questions with their hints; `render` writes the committed outputs and `blanks` the
exercise sheets.
"""
