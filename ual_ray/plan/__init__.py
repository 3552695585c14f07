"""`ual plan`: what a run takes, before it starts, from the rates that a short trial measured. No rate is assumed.

rates.py     measured rates: read from a trial's output, or given
simulate.py  rows on actors that fail: expectation, a discrete-event simulation, time and cost by number of actors; pure
outline.py   the plan of a configuration: calls, tokens, hours, money, memory; as shown on the terminal
rayjob.py    the plan as a RayJob for KubeRay
"""
