"""The seam: records of plain data between front ends and rules.

A front end turns a pass of its network into a `Reading`; rules turn readings into `Finding`s with
`Site`s and an `Edit`; a `Subject` is what a front end implements to be diagnosed and cured. Beside
the records stands what is worked out from a flow's numbers alone: the trend of its gains, and its
spread over resampled batches.
"""
