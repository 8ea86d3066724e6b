import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import javax.net.SocketFactory;

/**
 * Lets the JDBC driver reach PostgreSQL as the other drivers do, through the server's Unix socket.
 *
 * Owns: a Socket that is a SocketChannel to the path it was made with. Refuses: timeouts, and
 * addresses: whatever it is told to connect to, it connects to its path.
 */
public final class UnixSocketFactory extends SocketFactory {
    private final String path;

    /** The driver passes the connection property socketFactoryArg. */
    public UnixSocketFactory(String path) {
        this.path = path;
    }

    @Override
    public Socket createSocket() throws IOException {
        return new UnixSocket(path);
    }

    @Override
    public Socket createSocket(String host, int port) throws IOException {
        throw new UnsupportedOperationException();
    }

    @Override
    public Socket createSocket(String host, int port, java.net.InetAddress local, int localPort) {
        throw new UnsupportedOperationException();
    }

    @Override
    public Socket createSocket(java.net.InetAddress host, int port) {
        throw new UnsupportedOperationException();
    }

    @Override
    public Socket createSocket(
            java.net.InetAddress host, int port, java.net.InetAddress local, int localPort) {
        throw new UnsupportedOperationException();
    }

    private static final class UnixSocket extends Socket {
        private final UnixDomainSocketAddress address;
        private final SocketChannel channel;

        UnixSocket(String path) throws IOException {
            address = UnixDomainSocketAddress.of(path);
            channel = SocketChannel.open(StandardProtocolFamily.UNIX);
        }

        @Override
        public void connect(SocketAddress ignored) throws IOException {
            channel.connect(address);
        }

        @Override
        public void connect(SocketAddress ignored, int timeout) throws IOException {
            channel.connect(address);
        }

        @Override
        public InputStream getInputStream() {
            return Channels.newInputStream(channel);
        }

        @Override
        public OutputStream getOutputStream() {
            return Channels.newOutputStream(channel);
        }

        @Override
        public void close() throws IOException {
            channel.close();
        }

        @Override
        public boolean isClosed() {
            return !channel.isOpen();
        }

        @Override
        public boolean isConnected() {
            return channel.isConnected();
        }

        @Override
        public void setSoTimeout(int milliseconds) {}

        @Override
        public int getSoTimeout() {
            return 0;
        }

        @Override
        public void setTcpNoDelay(boolean on) {}

        @Override
        public void setKeepAlive(boolean on) {}

        @Override
        public void setReceiveBufferSize(int size) {}

        @Override
        public int getReceiveBufferSize() {
            return 8192;
        }

        @Override
        public void setSendBufferSize(int size) {}

        @Override
        public int getSendBufferSize() {
            return 8192;
        }
    }
}
