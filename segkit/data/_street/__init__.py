"""How `segkit.data.streets` paints a street: needs numpy and Pillow only, so its worker processes start fast.

`layout` decides what stands where, in metres, with `road`, `roadside` and `traffic`: there all randomness is
spent. `vehicles`, `people`, `furniture`, `buildings` and `scenery` know how things look; `canvas` projects
them and paints picture and ids together; `painter` puts it all in order; `writer` makes files.
"""
