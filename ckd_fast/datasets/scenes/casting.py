"""Who and what is in a scene, at random: targets and those that look like them, things around, things in front."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from .animals import Animal, animal
from .figures import Actor, Floats
from .people import Person, person
from .scenery import bush, post, tree, wall
from .shapes import Shape, shape
from .tiles import Tiles
from .vehicles import Vehicle, vehicle

Target = Person | Vehicle | Animal | Shape
TARGETS: tuple[Callable[[np.random.Generator, Tiles], Target], ...] = (person, vehicle, animal, shape)
DRAWN_BY: dict[type, Callable[[np.random.Generator, Tiles], Target]] = dict(
    zip((Person, Vehicle, Animal, Shape), TARGETS, strict=True)
)
TARGET_SHARES = (0.5, 0.2, 0.12, 0.18)
STRIDES = {Person: 0.86, Animal: 1.5, Vehicle: 1.0, Shape: 2.0}  # way of a full cycle of the gait, in heights


def target(random: np.random.Generator, tiles: Tiles) -> Target:
    """Somebody or something to follow."""
    number = int(random.choice(len(TARGETS), p=TARGET_SHARES))
    return TARGETS[number](random, tiles)


def lookalike(random: np.random.Generator, tiles: Tiles, actor: Actor) -> Target:
    """Another of the same kind, in clothes between its own and the actor's."""
    likeness = random.uniform(0, 0.85)
    if not isinstance(actor, Person | Vehicle | Animal | Shape):
        raise TypeError(f"{type(actor).__name__} is no target")
    other = DRAWN_BY[type(actor)](random, tiles)
    palette: Floats = other.palette + likeness * (actor.palette - other.palette)
    cloth = actor.cloth if random.random() < likeness else other.cloth
    body = actor if random.random() < likeness else other
    if isinstance(body, Shape):
        body = dataclasses.replace(body, height=actor.height * random.uniform(0.8, 1.25))
    made: Target = dataclasses.replace(body, palette=palette, cloth=cloth)
    return made


def prop(random: np.random.Generator, tiles: Tiles) -> Actor:
    """Something that stands around."""
    kind = random.random()
    if kind < 0.3:
        return tree(random)
    if kind < 0.5:
        return bush(random)
    if kind < 0.65:
        return post(random)
    if kind < 0.75:
        return wall(random, tiles)
    return vehicle(random, tiles) if kind < 0.9 else person(random, tiles)


def low_prop(random: np.random.Generator) -> Actor:
    """Something that hides little of what is behind it."""
    return (
        post(random)
        if random.random() < 0.7
        else dataclasses.replace(bush(random), height=0.6, width=random.uniform(0.6, 1.4))
    )


def occluder(random: np.random.Generator, tiles: Tiles, width: float, height: float) -> Actor:
    """Something to stand in front of a target of some width and height in metres; most can hide it."""
    kind, wider, taller = random.random(), random.uniform(1.1, 1.8), random.uniform(1.15, 1.5)
    if kind < 0.3:
        return dataclasses.replace(wall(random, tiles), width=wider * width, height=max(taller * height, 1.2))
    if kind < 0.45:
        return dataclasses.replace(tree(random), trunk=0.3)
    if kind < 0.7:
        return dataclasses.replace(bush(random), width=1.2 * wider * width, height=1.2 * taller * height)
    if kind < 0.75:
        return post(random)
    return vehicle(random, tiles) if kind < 0.9 else person(random, tiles)


def stride(actor: Actor) -> float:
    """Way of a full cycle of its gait, in metres."""
    return STRIDES.get(type(actor), 1.0) * actor.height
