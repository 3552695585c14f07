"""A strict schema of the fields that this package's KubeRay manifests use, after KubeRay's CRDs and the rules of its operator.

The CRDs themselves have over a megabyte each: here is what is used, with its type, and no field besides.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([KMGT]i|[mkMGT])?$"}
# The operator's rules for names: a label of DNS, with room for what it appends.
NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}


def fields(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these fields and no other."""
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def listed(item: Schema, least: int = 1) -> Schema:
    """A list of items."""
    return {"type": "array", "items": item, "minItems": least}


FROM_SECRET = fields({"secretKeyRef": fields({"name": TEXT, "key": TEXT})})
CONFINED = fields({"allowPrivilegeEscalation": {"const": False}, "capabilities": fields({"drop": {"const": ["ALL"]}})})
RESOURCES = {"type": "object", "additionalProperties": QUANTITY, "required": ["cpu", "memory"]}
CONTAINER = fields(
    {
        "name": TEXT,
        "image": TEXT,
        "securityContext": CONFINED,
        "env": listed(fields({"name": TEXT, "value": TEXT})),
        "envFrom": listed(fields({"secretRef": fields({"name": TEXT}, optional=FLAG)})),
        "resources": fields({"requests": RESOURCES, "limits": RESOURCES}),
        "volumeMounts": listed(fields({"name": TEXT, "mountPath": {"type": "string", "pattern": "^/"}})),
    },
    ports=listed(fields({"name": TEXT, "containerPort": {"type": "integer", "minimum": 1, "maximum": 65535}})),
)
CONFINED_POD = fields(
    {
        "runAsNonRoot": {"const": True},
        "runAsUser": {"type": "integer", "minimum": 1},
        "seccompProfile": fields({"type": {"const": "RuntimeDefault"}}),
    },
    fsGroup=COUNT,
    fsGroupChangePolicy={"enum": ["Always", "OnRootMismatch"]},
)
POD = fields(
    {
        "securityContext": CONFINED_POD,
        "containers": listed(CONTAINER),
        "volumes": listed(
            fields(
                {"name": TEXT},
                persistentVolumeClaim=fields({"claimName": TEXT}),
                emptyDir=fields({"medium": {"const": "Memory"}}),
            )
        ),
    },
    automountServiceAccountToken=FLAG,
    tolerations=listed(
        fields({"key": TEXT, "operator": {"enum": ["Exists", "Equal"]}}, effect={"enum": ["NoSchedule", "NoExecute"]})
    ),
)
# All values are texts: the operator passes them to `ray start`.
START = {"type": "object", "additionalProperties": {"type": "string"}}
GROUP: dict[str, Schema] = {"rayStartParams": START, "template": fields({"spec": POD})}
CLUSTER = fields(
    {
        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "headGroupSpec": fields(GROUP),
        "workerGroupSpecs": listed(
            fields({**GROUP, "groupName": NAME, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT})
        ),
        "authOptions": fields({"mode": {"const": "token"}}),
    },
    enableInTreeAutoscaling=FLAG,
    # Where the version is not named, the operator leaves restartPolicy at Always, and idle pods are not reclaimed.
    autoscalerOptions=fields({"version": {"const": "v2"}}, idleTimeoutSeconds=COUNT, securityContext=CONFINED),
    gcsFaultToleranceOptions=fields({"redisAddress": TEXT, "redisPassword": fields({"valueFrom": FROM_SECRET})}),
)
SUBMITTER = fields(
    {
        "restartPolicy": {"enum": ["Never", "OnFailure"]},
        "securityContext": CONFINED_POD,
        "containers": listed(
            fields(
                {
                    "name": TEXT,
                    "image": TEXT,
                    "securityContext": CONFINED,
                    "resources": fields({"requests": RESOURCES, "limits": RESOURCES}),
                }
            )
        ),
    },
    automountServiceAccountToken=FLAG,
)
JOB = fields(
    {"entrypoint": TEXT, "rayClusterSpec": CLUSTER},
    submitterPodTemplate=fields({"spec": SUBMITTER}),
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
)


def manifest(kind: str) -> Schema:
    """The schema of a whole file: a RayCluster or a RayJob."""
    about: dict[str, Schema] = {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": kind},
        "metadata": fields({"name": NAME}),
        "spec": {"RayCluster": CLUSTER, "RayJob": JOB}[kind],
    }
    return fields(about)
