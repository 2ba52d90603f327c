// A device on Bouncy Castle (1.72): PSK-DTLS 1.2 with or without ECDHE, one CoAP
// request, its answer. It is the stack here that has 0xD003.
//
//   javac -d . -cp bctls.jar:bcprov.jar BouncyCastleClient.java
//   java -cp .:bctls.jar:bcprov.jar:bcutil.jar BouncyCastleClient 127.0.0.1 5684 plug-batch-7 \
//       706c75672d62617463682d372d6b6579 PLUG0001 TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256
//
// It prints the answer's code and payload. A last argument sets options: `noems`
// leaves extended master secret out, `mfl512` asks for small records, `p256` and
// `x25519` offer that group alone.

import java.net.DatagramSocket;
import java.net.InetAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Hashtable;
import java.util.Vector;
import org.bouncycastle.tls.BasicTlsPSKIdentity;
import org.bouncycastle.tls.CipherSuite;
import org.bouncycastle.tls.DTLSClientProtocol;
import org.bouncycastle.tls.DTLSTransport;
import org.bouncycastle.tls.MaxFragmentLength;
import org.bouncycastle.tls.NamedGroup;
import org.bouncycastle.tls.PSKTlsClient;
import org.bouncycastle.tls.ProtocolVersion;
import org.bouncycastle.tls.TlsExtensionsUtils;
import org.bouncycastle.tls.UDPTransport;
import org.bouncycastle.tls.crypto.impl.bc.BcTlsCrypto;

public final class BouncyCastleClient {
    private static final int TRIES = 10;
    private static final int HANDSHAKE_MILLIS = 300_000;

    private static final class Client extends PSKTlsClient {
        private final int suite;
        private final String options;

        Client(BcTlsCrypto crypto, String identity, byte[] key, int suite, String options) {
            super(crypto, new BasicTlsPSKIdentity(identity.getBytes(StandardCharsets.UTF_8), key));
            this.suite = suite;
            this.options = options;
        }

        @Override
        protected ProtocolVersion[] getSupportedVersions() {
            return ProtocolVersion.DTLSv12.only();
        }

        @Override
        protected int[] getSupportedCipherSuites() {
            return new int[] {suite};
        }

        @Override
        @SuppressWarnings({"rawtypes", "unchecked"})
        protected Vector getSupportedGroups(Vector roles) {
            Vector<Integer> groups = new Vector<>();
            if (options.contains("x25519")) groups.add(NamedGroup.x25519);
            if (options.contains("p256")) groups.add(NamedGroup.secp256r1);
            return groups.isEmpty() ? super.getSupportedGroups(roles) : groups;
        }

        @Override
        @SuppressWarnings({"rawtypes", "unchecked"})
        public Hashtable getClientExtensions() throws java.io.IOException {
            Hashtable extensions = TlsExtensionsUtils.ensureExtensionsInitialised(super.getClientExtensions());
            if (options.contains("mfl512"))
                TlsExtensionsUtils.addMaxFragmentLengthExtension(extensions, MaxFragmentLength.pow2_9);
            return extensions;
        }

        @Override
        public boolean shouldUseExtendedMasterSecret() {
            return !options.contains("noems");
        }

        @Override
        public int getHandshakeTimeoutMillis() {
            return HANDSHAKE_MILLIS;
        }
    }

    /** GET /cert with {"sn": sn} as CBOR: a confirmable message of token 0xc3. */
    private static byte[] request(String sn) {
        byte[] name = sn.getBytes(StandardCharsets.US_ASCII); // up to 23 characters
        return ByteBuffer.allocate(18 + name.length)
                .put(HexFormat.of().parseHex("41011234c3b463657274113cffa162736e"))
                .put((byte) (0x60 | name.length))
                .put(name)
                .array();
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length < 6) {
            System.err.println("usage: BouncyCastleClient HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]");
            System.exit(2);
        }
        int suite = CipherSuite.class.getField(arguments[5]).getInt(null);
        BcTlsCrypto crypto = new BcTlsCrypto(new SecureRandom());
        byte[] key = HexFormat.of().parseHex(arguments[3]);
        String options = arguments.length > 6 ? arguments[6] : "";
        DatagramSocket socket = new DatagramSocket();
        socket.connect(InetAddress.getByName(arguments[0]), Integer.parseInt(arguments[1]));
        Client client = new Client(crypto, arguments[2], key, suite, options);
        DTLSTransport dtls = new DTLSClientProtocol().connect(client, new UDPTransport(socket, 1280));

        byte[] request = request(arguments[4]);
        byte[] answer = new byte[1024];
        // RFC 7252 section 4.2: sent again until it is answered.
        for (int tries = 0; tries < TRIES; tries++) {
            dtls.send(request, 0, request.length);
            int length = dtls.receive(answer, 0, answer.length, 3000);
            if (length < 4 || answer[1] == 0) continue;
            int code = answer[1] & 0xff;
            int payload = 4;
            while (payload < length && answer[payload] != (byte) 0xff) payload++;
            System.out.printf("%s %d.%02d ", arguments[5], code >> 5, code & 31);
            System.out.write(Arrays.copyOfRange(answer, Math.min(payload + 1, length), length));
            System.out.println();
            dtls.close();
            System.exit(code >> 5 == 2 ? 0 : 1);
        }
        System.err.println("no answer");
        System.exit(1);
    }
}
