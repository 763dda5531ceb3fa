"""A monitor of a model while it trains.

A step is one of three. At some there is a look (schedule.py says which): hooks on the modules read
outputs and δ (hooks.py; closer looks at a few, looks.py), and steps.py and recording.py end it. All
others are quiet (quiet.py): in rows, which are `_core.Quiet`'s, or one by one in Python where
something is not as usual; of each there are the loss and the norms. And where a value is not
finite, a step becomes a look afterwards: first.py runs the model on its batch again.

What is heard of a loop comes by listening.py, and is kept in loop.py and stepped.py; updates.py
has samples of what optimizers did to weights, owners.py who has which parameter. history.py and
track.py keep steps. alarms.py says when a training is judged: report.py makes a reading of all
this, again.py takes a second look, journal.py writes the log, run.py and scalars.py are for
pictures and loggers.
"""
