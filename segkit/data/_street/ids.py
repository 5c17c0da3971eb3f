"""Cityscapes' label ids, as they stand in labelIds files; the ones that streets paints."""

EGO_VEHICLE, OUT_OF_ROI, STATIC, DYNAMIC = 1, 3, 4, 5
GROUND, ROAD, SIDEWALK, PARKING = 6, 7, 8, 9
BUILDING, WALL, FENCE, GUARD_RAIL = 11, 12, 13, 14
POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = 17, 19, 20
VEGETATION, TERRAIN, SKY = 21, 22, 23
# those below have instances
PERSON, RIDER, CAR, TRUCK, BUS, CARAVAN, TRAILER, TRAIN, MOTORCYCLE, BICYCLE = range(24, 34)
