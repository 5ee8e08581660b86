"""bnbench: which normalization layer should this CNN use, and what does it cost?"""

__version__ = "0.1.0"
