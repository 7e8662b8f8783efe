"""A living world: people who visit, look down a list, watch, rate, come back and change, by a truth that is known.

Nothing here recommends, trains or stores: whoever runs the loop does, between `world.LivingWorld.visits` and `record`.
"""
