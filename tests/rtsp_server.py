"""A real RTSP server (GStreamer) on 127.0.0.1 for tests; runs under the system's Python, which has gi.

    /usr/bin/python3 tests/rtsp_server.py --port 8554 --mount /a --mount /b

Serves an endless test picture, or with `--frames FOLDER` its `00001.jpg`, `00002.jpg`, ... in a loop.
Prints `ready` when it listens. A test ends it, kills it or freezes it by its process id.
"""

from __future__ import annotations

import argparse

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} ! h264parse "
    "! rtph264pay name=pay0 pt=96 config-interval=1",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} ! h265parse "
    "! rtph265pay name=pay0 pt=96 config-interval=1",
    "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}


def media(options: argparse.Namespace) -> str:
    if options.frames:
        picture = (
            f'multifilesrc location="{options.frames}/%05d.jpg" start-index=1 loop=true '
            f"caps=image/jpeg,framerate={options.fps}/1 ! jpegdec ! clocksync"
        )
    else:
        picture = (
            "videotestsrc is-live=true pattern=ball ! "
            f"video/x-raw,width={options.width},height={options.height},framerate={options.fps}/1"
        )
    encoder = ENCODERS[options.codec].format(fps=options.fps)
    return f"( {picture} ! videoconvert ! video/x-raw,format=I420 ! {encoder} )"


def require_login(
    server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, login: str
) -> None:
    user, _, password = login.partition(":")
    token = GstRtspServer.RTSPToken()
    token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mount", action="append", required=True, help="path, e.g. /cam; may be repeated")
    parser.add_argument("--codec", choices=sorted(ENCODERS), default="h264")
    parser.add_argument("--fps", type=int, default=15)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--height", type=int, default=120)
    parser.add_argument("--frames", help="folder with 00001.jpg, 00002.jpg, ...")
    parser.add_argument("--login", help="user:password that clients must give")
    parser.add_argument("--udp-only", action="store_true", help="refuse RTSP over TCP")
    options = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(options.port))
    for mount in options.mount:
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(media(options))
        factory.set_shared(True)
        if options.udp_only:
            factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
        if options.login:
            require_login(server, factory, options.login)
        server.get_mount_points().add_factory(mount, factory)
    if not server.attach(None):
        raise SystemExit(f"cannot listen on port {options.port}")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
