"""Processes, devices, files and errors; imports nothing else of jcm."""
