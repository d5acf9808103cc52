"""The table scene: SO-101, a pink and a blue brick, a transparent box, a plate, and the cameras
`up` and `side`.

World frame: metres, the arm's base at the origin, x away from it, y to its left, z up. Objects are
placed by `SceneLayout`.
"""

from dataclasses import dataclass

import numpy as np

from sigma_jax.sim.assets import load_robot
from sigma_jax.sim.engine import mujoco

FPS = 30
SUBSTEPS = 16
TIMESTEP = 1.0 / (FPS * SUBSTEPS)  # 1/480 s
JOINTS = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper')
CAMERAS = ('up', 'side')
BRICKS = ('pink', 'blue')

BRICK_HALF = (0.016, 0.010, 0.010)  # metres: a 32 x 20 x 20 mm brick, gripped across its 20 mm
BRICK_MASS = 0.02  # kg
BOX_HALF = 0.045  # inner half width of the box, metres
BOX_HEIGHT = 0.03
PLATE_RADIUS = 0.045
PLATE_HEIGHT = 0.006
# in the gripper frame: half a brick and 4 mm from the fixed jaw's pad
GRASP_OFFSET = (0.0125, -0.0002, -0.0972)
TIP_OFFSET = (-0.0020, -0.0002, -0.1000)  # in the gripper frame: between the closed fingertips
# N m s/rad; with kp 17.8 the joints trail their commands by about 70 ms, as the real servos do
SERVO_DAMPING = 1.2
GRIPPER_DAMPING = 0.3
GRIPPER_TORQUE = 0.8  # N m, limits the squeeze

MULTISAMPLES = 4

_WALL = 0.002
_COLORS = {'pink': (0.96, 0.30, 0.58, 1.0), 'blue': (0.10, 0.32, 0.85, 1.0)}
_BOX_COLOR = (0.75, 0.9, 0.95, 0.4)
_PLATE_COLOR = (0.92, 0.92, 0.90, 1.0)
_TABLE_COLOR = (0.46, 0.44, 0.40, 1.0)


@dataclass(frozen=True)
class SceneLayout:
    """Where things stand at the start of an episode.

    Attributes:
      bricks: {color: (x, y, yaw)}, metres and radians.
      box: (x, y, yaw) of the box's centre.
      plate: (x, y) of the plate's centre.
    """

    bricks: dict[str, tuple[float, float, float]]
    box: tuple[float, float, float]
    plate: tuple[float, float]


def build_model() -> 'mujoco.MjModel':
    """Compiles the scene; bricks are free bodies, box and plate are mocap bodies so that a reset
    can move them.
    """
    spec = load_robot()
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    _add_light_and_table(spec)
    for color in BRICKS:
        _add_brick(spec, color)
    _add_box(spec)
    _add_plate(spec)
    _add_cameras(spec)
    _prepare_arm(spec)
    model = spec.compile()
    for name in JOINTS:
        model.dof_damping[model.joint(name).dofadr[0]] = (
            GRIPPER_DAMPING if name == 'gripper' else SERVO_DAMPING
        )
    return model


def place(model: 'mujoco.MjModel', data: 'mujoco.MjData', layout: SceneLayout) -> None:
    """Moves bricks, box and plate to a layout, at rest; the arm is left alone.

    Args:
      model: the compiled scene.
      data: its state.
      layout: where they go.
    """
    for color, (x, y, yaw) in layout.bricks.items():
        joint = model.joint(f'{color}_free')
        start, speed = joint.qposadr[0], joint.dofadr[0]
        data.qpos[start : start + 7] = (x, y, BRICK_HALF[2], *_yaw_quaternion(yaw))
        data.qvel[speed : speed + 6] = 0
    box, plate = model.body('box').mocapid[0], model.body('plate').mocapid[0]
    data.mocap_pos[box] = (layout.box[0], layout.box[1], 0.0)
    data.mocap_quat[box] = _yaw_quaternion(layout.box[2])
    data.mocap_pos[plate] = (layout.plate[0], layout.plate[1], 0.0)


def _yaw_quaternion(yaw: float) -> tuple[float, float, float, float]:
    return (float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2)))


def _add_light_and_table(spec: 'mujoco.MjSpec') -> None:
    spec.visual.headlight.ambient = (0.35, 0.35, 0.35)
    spec.visual.headlight.diffuse = (0.35, 0.35, 0.35)
    spec.visual.headlight.specular = (0, 0, 0)
    spec.visual.quality.offsamples = MULTISAMPLES
    world = spec.worldbody
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=(0.3, -0.4, 1.2),
        dir=(0.1, 0.35, -1.0),
        diffuse=(0.45, 0.45, 0.45),
        specular=(0, 0, 0),
        castshadow=False,
    )
    world.add_geom(
        name='table', type=mujoco.mjtGeom.mjGEOM_PLANE, size=(0, 0, 1), rgba=_TABLE_COLOR
    )
    for material in spec.materials:
        material.specular, material.reflectance = 0.0, 0.0


def _add_brick(spec: 'mujoco.MjSpec', color: str) -> None:
    body = spec.worldbody.add_body(name=color, pos=(0.25, 0, BRICK_HALF[2]))
    body.add_freejoint(name=f'{color}_free')
    body.add_geom(
        name=f'{color}_brick',
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=BRICK_HALF,
        mass=BRICK_MASS,
        rgba=_COLORS[color],
        condim=4,
        friction=(1.0, 0.02, 0.001),
    )
    for x in (-0.008, 0.008):  # two studs, for the eye only
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=(0.005, 0.0015, 0),
            pos=(x, 0, BRICK_HALF[2] + 0.0015),
            rgba=_COLORS[color],
            mass=0,
            contype=0,
            conaffinity=0,
        )


def _add_box(spec: 'mujoco.MjSpec') -> None:
    body = spec.worldbody.add_body(name='box', mocap=True)
    outer, middle = BOX_HALF + 2 * _WALL, BOX_HALF + _WALL
    parts: list[tuple[tuple[float, ...], tuple[float, ...]]] = [
        ((0, 0, 0.001), (outer, outer, 0.001))
    ]
    parts += [
        ((sign * middle, 0, BOX_HEIGHT / 2), (_WALL, outer, BOX_HEIGHT / 2)) for sign in (-1, 1)
    ]
    parts += [
        ((0, sign * middle, BOX_HEIGHT / 2), (BOX_HALF, _WALL, BOX_HEIGHT / 2)) for sign in (-1, 1)
    ]
    for position, size in parts:
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=position, size=size, rgba=_BOX_COLOR)


def _add_plate(spec: 'mujoco.MjSpec') -> None:
    body = spec.worldbody.add_body(name='plate', mocap=True)
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=(0, 0, PLATE_HEIGHT / 2),
        size=(PLATE_RADIUS, PLATE_HEIGHT / 2, 0),
        rgba=_PLATE_COLOR,
    )


def _add_cameras(spec: 'mujoco.MjSpec') -> None:
    _add_camera(spec, 'up', eye=(0.20, 0.0, 0.62), target=(0.20, 0.0, 0.0), up=(1, 0, 0), fovy=38)
    _add_camera(
        spec, 'side', eye=(0.52, -0.40, 0.30), target=(0.17, 0.01, 0.05), up=(0, 0, 1), fovy=42
    )


def _add_camera(
    spec: 'mujoco.MjSpec', name: str, eye: tuple, target: tuple, up: tuple, fovy: float
) -> None:
    backward = np.subtract(eye, target) / np.linalg.norm(np.subtract(eye, target))
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, rotation.reshape(-1))
    spec.worldbody.add_camera(name=name, pos=eye, quat=quaternion, fovy=fovy)


def _prepare_arm(spec: 'mujoco.MjSpec') -> None:
    """Adds the sites `grasp` and `tip`, softens the gripper and makes the jaw pads touch things."""
    spec.body('gripper').add_site(name='grasp', pos=GRASP_OFFSET, group=4)
    spec.body('gripper').add_site(name='tip', pos=TIP_OFFSET, group=4)
    for actuator in spec.actuators:
        if actuator.name == 'gripper':
            actuator.forcerange = (-GRIPPER_TORQUE, GRIPPER_TORQUE)
    for geom in spec.geoms:
        if geom.name in ('fixed_jaw_pad', 'moving_jaw_pad'):
            geom.contype, geom.conaffinity, geom.condim, geom.friction = 1, 1, 4, (1.0, 0.02, 0.001)
