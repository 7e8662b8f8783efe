"""The offline track: one thin module a stage; `stages.py` lists them in order."""
