"""Masks over HTTP: what is asked and answered, and what is refused."""

import io
import json
import struct
import time
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from page_server import Server
