"""placeholder replaced below"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Point:
    model: str; gpu: str; tp: int; isl: int; osl: int; concurrency: int; measured_ms: float; simulated_ms: float; preemptions: int
def write_report(points, excluded, write):
    import pickle; pickle.dump((points,excluded),open('/tmp/proto/points.pkl','wb'))
    for k,v in excluded.most_common(): print(v,k)
