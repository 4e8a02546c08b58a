"""Scenes as a visible and a thermal camera see them: one renderer for clips and for training pairs.

A picture is [H, W, 4] in levels 0..255: red, green, blue and warmth. Positions are in pixels of the scene, which are
those of a frame at rest; a `View` says which part of the scene a picture shows, and at which size.

    figures     what everything is made of: polygons, built from a body's pose
    people, vehicles, animals, shapes     what moves
    scenery, backdrop     what stands, and what is behind it
    casting     who and what is in a scene, at random
    canvas, cameras, render     from a moment of a scene to what the cameras see of it

Everything is drawn by OpenCV on the host, so equal seeds give equal pictures whatever device trains on them.
`synthetic` and `training.rendering` say how things move and what happens.
"""
