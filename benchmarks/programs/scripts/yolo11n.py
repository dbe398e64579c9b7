"""Trains YOLO11n from scratch with ultralytics, written as its guides show it."""

from __future__ import annotations

from ultralytics import YOLO

if __name__ == "__main__":
    YOLO("yolo11n.yaml").train(data="toy.yaml", epochs=1, batch=8, imgsz=640, workers=1, plots=False)
