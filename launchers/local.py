"""placeholder, owned by the launch helper"""
