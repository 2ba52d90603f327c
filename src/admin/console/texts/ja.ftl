# Sentences of the console. A key has the same values in each language.

## Frame

nav-overview = 概要
nav-devices = デバイス
nav-enrollments = 登録グループ
nav-import = インポート
nav-pages = ページ
nav-skip = 本文へ移動
role-operator = オペレーター
role-viewer = 閲覧者
footer-server = {$now} 現在 · {$host} 上の certdist {$version}（{$started} 起動） · {$database}
live-stale = サーバーが応答しません。下の数値は古いものです。
live-ended = セッションが終了しました。下の数値は古いものです。
go-to-overview = 概要へ
page-not-found-title = ページがありません
page-not-found = このアドレスにページはありません。{$link}
form-expired = フォームの有効期限が切れました
form-expired-text = このフォームは現在のセッションのものではないため、何も変更されていません。ページを開き直して、もう一度操作してください。
signed-out = サインアウトされています
signed-out-text = フォームが届く前にセッションが終了していたため、何も変更されていません。サインインして、もう一度操作してください。
signed-out-already = セッションはすでに終了していました。続けるにはサインインしてください。
operators-only = この操作はオペレーターだけができます
operators-only-text = 閲覧者としてサインインしています。すべてを見られますが、変更はできません。変更するには、設定に {$role} が必要です。
database-failed = データベースのエラー
database-failed-text = 何も変更されていません。データベースからの報告：
database-failed-advice = 続く場合は、ディスクに空きがあるか、ほかのプロセスがファイルを占有していないかを確認してください。
console-off = サインインできるユーザーがまだいません
console-off-text = ユーザーが設定されていないため、コンソールは無効です。ヘルスとメトリクスは {$health} と {$metrics} にあります。
console-off-hash = 有効にするには、まずパスワードのハッシュを作ります。
console-off-config = それを {$file} に書き、certdist を再読み込みします（{$command} または SIGHUP）。

## Devices

column-enrollment = 登録グループ
column-state = 状態
column-issued = 初回発行
column-job = ジョブ
count = {$count}
cancel = キャンセル
copy = コピー
copied = コピーしました
and-more = ほか {$count} 件
under-one-percent = 1 % 未満
state-imported = インポート済み
state-waiting = 登録中
state-registered = 登録済み
state-unissued = 登録済み、未発行
state-issued = 発行済み
state-activated = 有効化済み
state-refused = 登録拒否
state-disabled = ここで無効
state-cloud-disabled = IoT Platform で無効
state-cloud-deleted = IoT Platform で削除
devices-search = デバイス
devices-search-button = 検索
devices-search-hint = ラベルの内容：シリアル番号、任意の表記の MAC アドレス、デバイス名、IotId、または ID の先頭か末尾。
devices-conditions = 条件
devices-any-state = すべて
devices-from = 初回発行の開始日（UTC）
devices-to = 初回発行の終了日（UTC）
devices-apply = 適用
devices-all = すべてのデバイスを表示
devices-total = {$count} 台、ID 順
devices-more-than = {$count} 台以上、ID 順。
devices-count = すべて数える
devices-counted = · {$time} に集計
devices-previous = 前へ
devices-next = 次へ
devices-none = 見つかりません
devices-none-text = 該当するデバイスはありません。インポートしましたか。ほかの条件が妨げていませんか。
devices-partly = まだすべてではありません
devices-partly-text = テーブルが大きいため、検索は {$device} まで進みました。
devices-go-on = 検索を続ける
devices-unreadable = 条件を読み取れません
devices-bad-state = そのような状態はありません。一覧から選んでください。
devices-bad-date = 日付の形式は 2026-11-28 です。
devices-bad-part = ページのアドレスが不完全です。もう一度検索してください。
where-enrollment = 登録グループ {$value}
where-product = 製品 {$value}
where-state = 状態：{$value}
where-refusal = 拒否理由：{$value}
where-from = 初回発行 {$value} から
where-to = 初回発行 {$value} まで
where-begins = ID の先頭が {$value}
where-ends = ID の末尾が {$value}
where-name = デバイス名 {$value}
where-iotid = IotId {$value}

## A list of devices

list-title = 複数のデバイス
list-label = デバイス ID、デバイス名、または IotId
list-hint = 1 行に 1 つ、最大 {$most} 行。表計算ソフトからそのまま貼り付けられます。
list-button = 探す
list-found = {$lines} 行から {$found} 台、うち {$shown} 台を表示
list-missing = {$count} 行に該当するデバイスがありません
list-missing-text = これらの行は除外されます。入力ミスがないか確認するか、インポートしてください。
list-time-up = 時間が足りず、すべての行をデバイス名や大文字・小文字の違いで探すことはできませんでした。リストを分けて送ってください。
list-other-case = {$count} 行は大文字・小文字の違いを無視して対応づけました
list-empty = 一覧が空です
list-empty-text = 少なくとも 1 行を貼り付けてください。
list-not-read = 一覧を読み取りませんでした
list-too-many = {$most} 行を超えています。分けて送るか、certdist device --file を使ってください。

## Actions

action-disable = 無効にする
action-enable = 有効にする
action-reset = リセット
action-register = 今すぐ登録
action-delete = 削除
action-disable-text = 次のリクエストから証明書を渡しません（4.03）。IoT Platform には通知されないため、発行済みの証明書はそちらで引き続き使えます。
action-enable-text = 登録グループのポリシーに従って、再び証明書を取得できます。
action-reset-text = 初回発行と拒否の記録を消去し、再び証明書の取得や登録ができるようにします。
action-register-text = デバイスからの要求を待たずに、アカウントのレートで 1 台ずつ IoT Platform に登録します。起動したばかりのデバイスの待ち時間は長くても数秒です。登録グループ全体には、一括登録を行う certdist register のほうが高速です。
action-delete-text = テーブルから、鍵とこのサーバーにある証明書ごとデバイスを削除します。IoT Platform 上のデバイスは残ります。
bulk-title = これらすべてのデバイスを操作
bulk-of-list = 一覧のデバイスを操作
bulk-action = 操作
bulk-preview-button = プレビュー
bulk-hint = まず対象の台数を表示します。まだ何も変更しません。
bulk-heading = {$action}：{$count} 台
bulk-confirm = {$count} 台を{$action}
bulk-confirm-title = 実行しますか
bulk-whole-table = 条件なし、テーブルのすべてのデバイスです。
bulk-nothing = 対象のデバイスはありません。
bulk-unchanged = すでに目的の状態にあるデバイスはそのままです。後から条件に合うデバイスが増えても、この台数で止まります。
bulk-removes-issues = {$count} 台のデバイスの初回発行の記録が消去されます。
bulk-removes-refusals = {$count} 台のデバイスの拒否の記録が消去されます。
bulk-removes-certificates = {$count} 台のデバイスの証明書が削除されます。IoT Platform で削除済みのためです。次のリクエストで、同じ名前で登録し直されます。
bulk-removes-certificates-here = ここにある {$count} 台のデバイスの証明書が削除されます。IoT Platform では引き続き有効です。
bulk-removes-more = テーブルが大きく、時間内に最後まで読めませんでした。これらは少なくとも見つかった数です。
bulk-sure = {$count} 台を削除します。
bulk-samples = 最初の {$count} 台
bulk-refused = 何も変更されていません
bulk-bad-action = そのような操作はありません。一覧から選んでください。
bulk-not-confirmed = 操作が確認されていないか、プレビューが無効になっています。プレビューして、そこで確認してください。
bulk-not-counted = 時間内に数えられませんでした。条件を絞るか、登録グループを選んでください。

## Jobs

jobs-title = ジョブ
jobs-since = サーバーが {$time} に起動してからのジョブと、直近 24 時間で終了の記録がないジョブです。
jobs-none = ジョブはありません
jobs-none-text = 多数のデバイスへの操作を確認すると、ジョブが始まります。
jobs-busy = ほかのジョブが実行中です
jobs-busy-text = 何も変更されていません。どれかが終わるのを待つか停止して、もう一度確認してください。
jobs-meanwhile = その間に別のジョブが始まりました
jobs-meanwhile-text = 何も変更されていません。プレビューの後に、別のオペレーターが同じデバイスを変更する可能性のあるジョブを開始しました。それを確認し、もう一度プレビューしてください。
jobs-other = 別のジョブを表示
jobs-running = ジョブが実行中です
jobs-running-text = 同じデバイスを同時に変更する可能性があります。
job-running = 実行中
job-running-text = このページを閉じてもジョブは続きます。
job-complete = 完了
job-complete-text = すべてのデバイスを処理しました。
job-complete-with-failures = 完了、失敗あり
job-failures-text = まず下の原因を解決してください。
job-more = 完了、さらに対象が増えています
job-more-text = 確認した台数を処理しました。条件に合うデバイスが増えています。もう一度プレビューしてください。
job-stopped = 停止
job-stopped-text = {$who} が停止しました。処理済みの分は元に戻りません。
job-shutting-down = サーバーの停止により終了
job-shutting-down-text = サーバーが停止しました。処理済みの分は元に戻りません。
job-broken = 失敗
job-broken-text = データベースのエラー：{$error}。処理済みの分は元に戻りません。
job-unrecorded = どこまで進んだか分かりません
job-unrecorded-text = 監査ログには開始の記録がありますが、終了の記録がありません。ジョブの途中でサーバーが停止したか故障したか、別のサーバーで実行中です。行われた変更はすべて監査ログにあります。
job-again = 残りについては、操作をもう一度プレビューして確認してください。処理済みのデバイスはそのままです。
job-again-reset = リセットをそのまま繰り返さないでください。リセット後に証明書を取得したデバイスが、もう一度リセットされます。そのようなデバイスを除く条件で、もう一度プレビューしてください。
job-from-log = 監査ログによる情報です。このサーバーは {$time} に起動したか、その後に多数のジョブを実行しました。
job-unknown = そのようなジョブはありません
job-unknown-text = この番号のジョブはないか、古いため監査ログに残っていません。
job-not-found = このサーバーはこのジョブを知りません
job-not-found-text = 監査ログが大きく、時間内に検索できませんでした。ジョブが終了したかどうかは certdist audit export で分かります。繰り返す前に、操作をもう一度プレビューしてください。
job-stop = 停止する
job-stop-text = あと数台処理してからジョブを終えます。処理済みの分は元に戻りません。
job-done = 処理済み
job-done-of = {$done} / {$all}
job-changed = 変更
job-unchanged = 変更不要
job-absent = テーブルになし
job-failed = 失敗
job-disabled = 対象外：ここで無効
job-refused = 対象外：IoT Platform が拒否。先にリセットしてください
job-by = 実行者
job-began = 開始
job-ended = 終了
job-expected = 終了予定
job-audit = すべての変更は、実行者の名前とともに監査ログに記録されます。
job-reasons = 失敗の理由
job-reason = {$count} 台：{$reason}、最初は {$device}
job-no-answer = IoT Platform の応答が間に合いませんでした。後のリクエストまたはジョブが再試行します

## A device

device-row = テーブルの内容
device-actions = 操作
device-viewer = 閲覧者としてサインインしています。変更できるのはオペレーターだけです。
done-disable = 無効にしました。
done-enable = 有効にしました。
done-reset = リセットしました。
waiting-title = 承認待ちのデバイス
waiting-text = これらのデバイスは登録グループの鍵を持ち、テーブルにありません。共有鍵では、鍵を持つ者は誰でも ID を作り出せます。知っているデバイスだけを承認してください。多数の承認には certdist device admit を使います。
waiting-none = ありません。
waiting-more = {$count} 台が待っています。certdist device waiting はすべてを一覧します。
waiting-admit = 承認
waiting-dismiss = 却下
done-admit = テーブルに追加しました。次の要求で証明書を取得します。
done-admit-known = すでにテーブルにあります。
done-admit-taken = 承認しませんでした。同じ名前のデバイスがあります。別の deviceName でインポートしてください。
done-dismiss = 却下しました。再び要求すると、再び待ちます。
confirm-title = {$device} を{$action}しますか
removes-issue = {$time} の初回発行の記録が消えます。
removes-refusal = 拒否の記録が消えます：{$reason}
removes-certificate = IoT Platform でデバイスが削除されているため、証明書が消えます。次のリクエストで同じ名前で登録し直されます。
removes-certificate-here = ここにある証明書が消えます。IoT Platform では引き続き使えます。
removes-row = 行と鍵が消えます。デバイスのリクエストには 4.04 を返します。
removes-nothing = 消去するものはありません。
keeps-certificate = 証明書はそのまま残ります。
changed-meanwhile = 何も変更されていません：デバイスは表示時と異なっています
changed-meanwhile-text = その後、ほかのオペレーターまたはデバイス自身が変更しました。現在の状態を表示しています。改めて判断してください。
fact-product = ProductKey
fact-name = デバイス名
fact-reissue = 証明書を取得できる回数
fact-iotid = IotId
fact-certificate = 証明書
fact-certificate-yes = あり。コンソールは秘密を表示しません
fact-certificate-no = まだありません
fact-registered = 登録
fact-activated = 有効化
fact-claim = 登録の状況
fact-claim-held = {$time} から進行中
fact-claim-left = {$time} に開始、未完了
fact-refusal = 拒否
fact-refusal-others = 同じ理由のデバイスすべて
refusal-name-taken = この名前は IoT Platform にすでに存在し、このサーバーが登録したものではありません
fact-seen = 最後の応答
reissue-always = 無制限
reissue-once = 1 回
reissue-window = 初回から {$span} の間
absent-title = テーブルにありません
absent = そのようなデバイスはありません
absent-text = ID {$device} のデバイスはテーブルにありません。この ID のリクエストには 4.04 を返します。
absent-asked = {$time} に、登録グループ {$enrollment} の鍵でリクエストがありました。
absent-import = インポート
absent-search = 別のデバイスを検索

## Advice on a device

advice-not-configured = 登録グループが設定されていません
advice-not-configured-text = 登録グループ {$enrollment} が設定にないため、デバイスはサインインできません。設定に追加するか、デバイスを別のグループにインポートしてください。
advice-disabled = ここで無効
advice-disabled-text = オペレーターが無効にしました。証明書は渡されず、リクエストには 4.03 を返します。
advice-disabled-issued = 取得済みの証明書は IoT Platform で引き続き使えます。デバイスを止めるには、そちらでも無効にしてください。
advice-cloud-deleted = IoT Platform で削除されています
advice-cloud-deleted-text = IoT Platform で削除されたため、証明書は使えません。まだ使用中なら、ここでリセットしてください。次のリクエストで同じ名前で登録し直されます。
advice-cloud-disabled = IoT Platform で無効になっています
advice-cloud-disabled-text = IoT Platform で無効にされたため、証明書でサインインできません。IoT Platform で有効にしてください。
advice-other-key = 別の登録グループの鍵を使っています
advice-other-key-text = {$time} に登録グループ {$other} の鍵でリクエストがありましたが、テーブルでは {$own} に登録されているため拒否されました。ラベルを確認してください。テーブルが誤りなら、{$other} にインポートしてください。デバイスはそこへ移り、その製品になります。ファームウェアが誤りなら、{$own} のものを書き込んでください。
absent-yours = ID が工場のリストにあれば、インポートしてください。
absent-not-yours = リストになければ、インポートしないでください。何も渡していません。誰かが {$enrollment} の鍵を持っている可能性があります。鍵を変えると登録グループの全デバイスへの書き込みが必要になるため、まず確認してください。
advice-refused = IoT Platform が拒否しています
advice-refused-text = IoT Platform がこのデバイスを拒否しています：{$reason}。IoT Platform で原因を解決してから、ここでリセットしてください。次のリクエストで登録されます。
advice-name-taken = 名前が IoT Platform で使用済みです
advice-name-taken-text = 名前 {$name} は IoT Platform にすでに存在し、このサーバーが登録したものではありません。まさにこのデバイスかどうかを IoT Platform で確認してください。そうであれば、登録グループに existing = "adopt" を設定するか、IoT Platform でそのデバイスを削除してください。そうでなければ、どちらかに別の deviceName を付けてください。その後、ここでリセットしてください。
advice-iot-id-taken = IotId が別のデバイスのものです
advice-iot-id-taken-text = 表の別のデバイスがこのデバイスの IotId を持っています：{$reason}。その後、ここでリセットしてください。
advice-issued = 証明書を取得済み、再発行なし
advice-asks-again = 再び要求し、拒否されています
advice-asks-again-text = {$time} に再び証明書を要求し、4.03 で拒否されました。
advice-not-open = 登録グループの受付開始前です
advice-not-open-text = {$time} から最初の証明書を取得できます。それまでの要求には、後で再試行するよう応答します。
advice-closed = 登録グループは終了しました
advice-closed-text = まだ証明書を取得しておらず、登録グループは {$time} に終了しました。取得してよいなら、設定の closes を遅らせ、再読み込みしてください。
advice-full = 登録グループは満員です
advice-full-text = 登録グループでは {$number} 台のデバイスに証明書があり、max_devices はこれ以上を許しません。取得してよいなら、設定の max_devices を増やし、再読み込みしてください。
advice-filling = 登録グループはまもなく満員です
advice-filling-text = 進行中の登録が登録グループの最後の枠を使っています。そのどれかが失敗すれば、このデバイスは次の要求で枠を得ます。
advice-once = 登録グループのポリシーでは発行は 1 回だけです。
advice-window-over = 再取得できる期間は {$time} に終わりました。
advice-window-open = {$time} まで再取得できます。
advice-issued-text = デバイスが証明書を失った場合は、リセットしてください。
advice-stopped = 未登録：IoT Platform が呼び出しを拒否しています
advice-stopped-text = IoT Platform が現在このサーバーの呼び出しを拒否しているため、まだ証明書がありません：{$reason}。デバイスの問題ではありません。対処は{$overview}にあります。その後、デバイスは自動で再試行します。
advice-registering = 登録中です
advice-registering-text = {$time} から IoT Platform に登録中です。続く場合は、{$overview}に理由が出ます。
advice-left = 登録が完了していません
advice-left-text = {$time} に始まった登録が中断されました。遅くともデバイスの次のリクエストで再開されます。
advice-last-refused = 最後のリクエストは拒否されました
advice-last-refused-text = {$time} に要求し、拒否されました：{$reason}。その後に原因を解決した場合は、次のリクエストに応答します。
advice-came = 以前に要求があります
advice-came-text = 最後の応答は {$time} で、その後は証明書を取得していません。次のリクエストに応答します。
advice-later = 後で再試行するよう応答しています
advice-later-text = {$time} に要求があり、応答は「{$answer}」でした。デバイスは自動で再試行します。続く場合は、概要に理由が出ます。
advice-not-come = まだ要求がありません
advice-new-text = このデバイスはテーブルにありますが、リクエストは知られていません。最初のリクエストで IoT Platform に登録されます。来ているはずなら、電源、このサーバーへの到達、鍵を確認してください。{$handshakes}
advice-ready-text = 証明書は用意できていますが、デバイスのリクエストは知られていません。来ているはずなら、電源、このサーバーへの到達、鍵を確認してください。{$handshakes}
advice-well = 正常です
advice-well-text = 証明書を取得し、IoT Platform にサインインしています。何もする必要はありません。
advice-has-it = 証明書を取得済み
advice-has-it-text = 証明書を取得していますが、IoT Platform へのサインインはまだ確認されていません。現れない場合は、IoT Platform への到達性と証明書の保存を確認してください。

## History of a device

history-title = 履歴
history-by = 操作者 {$who}
history-identity = アイデンティティ {$who}
history-invalid = テーブルにないか、鍵と別の登録グループ
history-from = {$address} から
history-times = {$time} 以降 {$count} 回
history-more = 最新の {$most} 件だけを表示しています。すべては certdist audit export --device で得られます。
history-imports = インポートの記録は 30 日間、最大 1000 件まで残ります。それより古いものは監査ログにだけあり、デバイスは含まれません。
event-issued = 発行
event-reissued = 再発行
event-refused = 拒否
event-registered = 登録
event-disabled = 無効化
event-enabled = 有効化
event-reset = リセット
event-deleted = 削除
event-ordered = 指示
event-rotated = 更新
event-cancelled = 取り消し
event-imported = インポート
event-admitted = 承認
event-undone = インポートの取り消し
event-sealed = 秘密の封印
event-restored = バックアップから復元
event-began = ジョブ開始
event-ended = ジョブ終了
event-pruned = ログの削除
event-dropped = 記録の欠落

## Enrollments

enrollments-counted = 各登録グループの進み具合です。{$time} に集計。数字から該当デバイスを開けます。
enrollments-none = 登録グループはありません
enrollments-none-text = 設定に登録グループを追加し、デバイスをインポートしてください。
enrollments-none-found = 名前にこの文字列を含む登録グループはありません。
enrollments-search = 名前に次を含む登録グループ
enrollments-about = {$kind} · 製品 {$product} · 発行 {$reissue}
enrollments-opens = {$time} から最初の証明書を発行します。
enrollments-closes = {$time} から最初の証明書を発行しません。
enrollments-places = 最大 {$max} 台のうち {$count} 台に証明書があります。
enrollments-holds = テーブルにないデバイスは承認を待ちます。
enrollments-admits = テーブルにないデバイスは、要求したときに追加されます。
key-individual = デバイスごとの鍵
key-derived = 派生鍵
key-shared = 共有鍵
enrollments-not-configured = 設定されていません
enrollments-not-configured-text = デバイスがサインインする鍵がありません。この登録グループを設定に追加してください。
enrollments-imported = インポート済み
enrollments-registered = 登録済み
enrollments-registered-text = IoT Platform に登録され、証明書がここにある
enrollments-issued = 発行済み
enrollments-issued-text = 証明書を取得した
enrollments-activated = 有効化済み
enrollments-activated-text = IoT Platform にサインインした
enrollments-waiting = { $number ->
   *[other] {$count} 台が登録を待っています。
}
enrollments-rate-later = 登録の速さはまだ分かりません。
enrollments-no-rate = 直近 {$seconds} 秒間に登録されたものはありません。
enrollments-rate = 毎分 {$rate} 台が登録されています。
enrollments-rate-end = この速さなら、待っているデバイスの登録は {$time} に終わります。
enrollments-rate-job = ジョブがほかのデバイスも登録しています。終了予定はジョブのページにあります。{$jobs}
enrollments-refused = {$count} 台が IoT Platform に拒否されました。理由：
enrollments-more-reasons = ほか {$count} 種類の理由
enrollments-disabled = {$count} 台をここで無効にしています。
enrollments-key-current = 元の鍵（key）
enrollments-key-next = 新しい鍵（key_next）
enrollments-key-used = {$key}は {$time} に最後に使われました。{$since} からのハンドシェイクは {$count} 回です。
enrollments-key-unused = {$key}は {$since} から使われていません。
enrollments-key-unknown = {$key}：使用状況を報告したサーバーはまだありません。

## Signing in

sign-in = サインイン
sign-out = サインアウト
sign-in-name = 名前
sign-in-password = パスワード
sign-in-hint = ユーザーは certdist.toml で設定します。パスワードを忘れた場合は {$command} で新しいハッシュを作ってください。
not-signed-in = サインインできませんでした
sign-in-form-expired = フォームの有効期限が切れたか、Cookie が無効になっています。もう一度お試しください。
sign-in-wrong = 名前またはパスワードが違います。
sign-in-too-often = 試行回数が多すぎます。{$seconds} 秒後にもう一度試すか、以前サインインしたことのあるブラウザーを使ってください。

## Overview

overview-as-of = {$time} 現在
all-is-well = すべて正常
nothing-to-do = 対応は不要です。確認した項目：
no-device-came = 直近 1 時間にリクエストしたデバイスはありません
no-device-came-text = 既知の障害はありません。今デバイスがリクエストするはずなら、電源が入っているか、このサーバーに届くかを確認してください。確認した項目：
too-early = まだ判断できません
too-early-text = サーバーは {$time} に起動し、その後障害は見られません。デバイスの電源を入れ、{$until} 以降にもう一度確認してください。それまでに「リクエスト」の数が 0 のままなら、デバイスはこのサーバーに届いていません。デバイスのネットワークを確認してください。確認した項目：
concerns-count = 確認事項 {$count} 件、重大な順。
too-early-counting = 今のところ既知の障害はありませんが、デバイステーブルを集計中です。確認した項目：
looked-requests = {$time} 以降のリクエストとハンドシェイク：発行 {$served} 件、失敗なし。
looked-requests-mended = {$time} 以降のリクエスト：発行 {$served} 件。{$unserved} 件は発行されませんでしたが、そのデバイスの問題はすべて解消しています。
looked-requests-none = {$time} 以降のリクエスト：なし。
looked-cloud = IoT Platform の呼び出し：失敗なし。最後の成功は {$time}。
looked-cloud-idle = IoT Platform の呼び出し：起動後はまだ呼び出しがなく、状態は不明です。
looked-no-cloud = IoT Platform の呼び出し：設定されておらず、必要なデバイスもありません。
looked-table = テーブル：{$time} 時点で {$count} 台。拒否・削除されたデバイスや、登録グループのないデバイスはありません。
looked-table-not-yet = テーブル：集計中です。
looked-server = このサーバーのデータベース書き込み、時計、ネットワーク：異常なし。
label-cause = 原因：
label-said = メッセージ：
label-remedy = 対処：
show-concerned = 影響を受けるデバイスを表示
show-handshakes = アイデンティティとアドレスを表示
fact-since = {$time} から
fact-since-or-earlier = {$time} から（それ以前の記録はありません）
fact-at = {$time} に発生
fact-last = 最終発生 {$time}
fact-over = {$time} 以降は発生なし
fact-counted = {$time} に集計
course-over = それ以降は発生していません。
course-untested = それ以降この呼び出しは行われておらず、原因はすでに解消しているかもしれません。次に登録するデバイスで分かります。
list-comma = 、
enrollment-pair = テーブルでは {$own} に属し、{$key} の鍵でリクエスト
fact-devices = {$count} 台
overview-requests = リクエスト
overview-results = 応答
overview-handshakes = ハンドシェイク
range-hour = 1 時間
range-day = 1 日
range-week = 1 週間
results-result = 結果
results-count = 件数
results-share = 割合
kind-served = 証明書を発行
kind-invalid = テーブルにない、または鍵の登録グループに属さない
kind-not-yours = 別のデバイスの証明書を要求
kind-disabled = ここで無効化
kind-issued = 発行済み
kind-closed = 登録グループが終了または満員
kind-too-many = リクエスト過多
kind-malformed = 理解できないリクエスト
kind-operator = 登録拒否
kind-later = 後で再試行するよう応答
kind-not-open = 登録グループの受付開始前
kind-held = 承認待ち
kind-timed-out = IoT Platform から時間内に証明書を得られない
handshake-completed = 完了
handshake-wrong-key = 鍵の誤りまたは未知のアイデンティティ
handshake-silent = クライアントが応答しなくなった
handshake-other = その他の失敗
tile-sessions = セッション
tile-sessions-about = 現在開いている DTLS
tile-registrations = 登録
tile-registrations-about = うち {$count} 件が呼び出し待ち
tile-batches = バッチ
tile-batches-about = 起動後 {$count} 件
tile-answered = 応答の所要時間
tile-answered-about = 95 % のリクエストがこの時間以内
tile-registered = 登録の所要時間
tile-registered-about = 完了した登録の 95 % がこの時間以内
tile-writes = 待機中の書き込み
tile-writes-about = データベース待ち
chart-served = 発行
chart-refused = このサーバーで拒否
chart-cloud = 登録が拒否された
chart-later = 後で再試行するよう応答
chart-words = 発行 {$served}、このサーバーで拒否 {$refused}、登録が拒否された {$cloud}、後で再試行するよう応答 {$later}。1 本の最大は {$most}
chart-a-minute = 目盛りの上端：毎分 {$count} 件。時刻は UTC
chart-20-minutes = 目盛りの上端：20 分あたり {$count} 件。時刻は UTC
chart-2-hours = 目盛りの上端：2 時間あたり {$count} 件。時刻は UTC
kind-unknown = テーブルにない
chart-begins = サーバーは {$time} に起動しました。グラフはそこから始まります。
chart-values = 数値
chart-from = 開始
chart-no-requests = リクエストはありませんでした。

## Failures

failing-devices = 証明書を得られなかったデバイス
failing-by-reason = 理由別
failing-by-enrollment = 鍵の登録グループ別
failing-by-address = アドレス別
failing-forgotten = 拒否されたデバイスが多いため、古いものは表示されません。
failing-partly = すべてのデバイスをテーブルと照合したわけではありません。多すぎるか、テーブルを読めません。
failures-since = {$time} 以降
failures-only = 絞り込み：{$reason}
failures-waiting = IoT Platform またはデータベースのため発行されず、その後も未発行
failures-enrollment = 別の登録グループの鍵
group-counts = デバイス {$devices} 台、リクエスト {$requests} 件
failures-all = すべてのデバイスを表示
handshakes-all = すべてのハンドシェイクを表示
failures-none = ありません。
at-least = 少なくとも
failures-latest = 最新の {$count} 件を表示しています。
failures-download = テーブルにない {$count} 件の ID をダウンロード
failures-download-hint = インポートする前に工場のリストと照合してください。鍵を持つ人は誰でも任意の ID を送れます。リストにない ID はインポートしないでください。{$import}
failures-foreign = テーブルでは登録グループ {$own} だが、{$key} の鍵を使用
column-device = デバイス
column-reason = 理由
column-key-of = 鍵の登録グループ
column-address = アドレス
column-last = 最終
column-requests = 件数
failures-imported-since = その後インポート済み
failures-served-since = その後発行済み
failures-mended-since = 現在は該当しません
handshakes-failed = 失敗したハンドシェイク
handshakes-counts = クライアント {$clients}、ハンドシェイク {$handshakes} 件
handshakes-hint = アイデンティティは自称です。鍵を証明する前なら、誰でも任意のアイデンティティを名乗れます。
handshakes-forgotten = 失敗したハンドシェイクが多いため、古いものは表示されません。
column-identity = アイデンティティ
column-handshakes = 件数

## Concerns

database-unreadable = データベースを読めません
database-unreadable-cause = このサーバーのディスクまたはデータベースファイル。
database-unreadable-remedy = ディスクの空きとファイルの有無を確認してください。失敗の内容はメッセージにあります。
database-writes = データベースへの書き込みが {$times} 件失敗しました
database-writes-cause = このサーバーのディスクが満杯か遅い、または別のプログラムがデータベースを占有しています。該当するデバイスには後で再試行するよう応答しました。
database-writes-remedy = ディスクの空きを増やし、占有しているプログラムを終了してください。各失敗の理由はログにあります。
cloud-silent = IoT Platform に接続できません
cloud-silent-cause = このサーバーと {$cloud} の間のネットワーク、または IoT Platform 自体です。デバイスの問題ではありません。{$times} 回連続で呼び出しが失敗しました（{$names}）。
cloud-slow = IoT Platform が {$times} 秒間呼び出しに応答していません
cloud-slow-cause = このサーバーと {$cloud} の間のネットワーク、または IoT Platform 自体です。デバイスの問題ではありません。
cloud-slow-remedy = 1 分お待ちください。応答がまだ来るかもしれません。来なければ、このサーバーのネットワーク、DNS、ファイアウォール、プロキシを確認してください。デバイス側の操作は不要です。自動で再試行します。
cloud-silent-remedy = このサーバーの管理者に、ネットワーク、DNS、ファイアウォール、プロキシの確認を依頼してください。異常がなければ、Alibaba Cloud のステータスページ（status.alibabacloud.com）を見て待ってください。デバイス側の操作は不要です。証明書のあるデバイスには引き続き渡され、ほかのデバイスは自動で再試行します。
cloud-account = IoT Platform がこのサーバーの呼び出しを拒否しています
cloud-account-cause = このサーバーが使うアカウントまたはアクセスキーです。デバイスの問題ではありません。拒否された呼び出し：{$names}。
cloud-account-remedy = メッセージに従い、Alibaba Cloud のコンソールかこのサーバーの設定を直してください。その後、デバイスは自動で再試行します。
cloud-product = IoT Platform が製品 {$names} を拒否しています
cloud-product-cause = この製品がインスタンスに存在しないか、デバイス数が上限に達しています。ほかの製品には影響しません。
cloud-product-remedy = 設定の product_key と instance_id を IoT Platform のコンソールと照合してください。
cloud-throttles = IoT Platform がこのアカウントを制限しています
cloud-throttles-cause = アカウントの呼び出しが IoT Platform の許容を超えています：{$names}。別のプログラムが同じアカウントを使っている可能性があります。
cloud-throttles-remedy = 一時的なら対応は不要です。certdist は自動で減速します。続く場合は qps を下げるか、ほかの利用者を調べてください。
cloud-fails = IoT Platform の呼び出しが失敗しています
cloud-fails-cause = IoT Platform がエラーを返しています。連続して失敗した呼び出し：{$times} 回（{$names}）。
cloud-fails-remedy = docs/cloud.md でコードを調べてください。IoT Platform の障害なら待ってください。デバイスは自動で再試行します。
devices-refused = {$devices} 台を登録できません
devices-refused-cause = これらのデバイス自体の問題です。例：名前が別のデバイスに使われている。最も多い理由は下にあります。
devices-refused-remedy = IoT Platform で原因を取り除き、ここでデバイスをリセットしてください。次のリクエストで登録されます。
wrong-enrollment = {$devices} 台が別の登録グループの鍵を使っています
wrong-enrollment-cause = インポートしたリストの誤り、デバイスのファームウェアの誤り、またはその鍵を持つ誰かによる ID の使用です：{$names}。
wrong-enrollment-remedy = デバイスのラベルを確認してください。{$key} とあれば：リストの誤りです。登録グループ {$key} にインポートしてください。{$own} とあれば：ファームウェアの誤りです。{$own} のものを書き込み、インポートはしないでください。現場にそのデバイスがなければ：第三者が鍵を持っています。このサーバーの管理者に知らせてください。
wrong-enrollment-remedy-several = デバイスのラベルを確認してください。鍵と一致すれば、リストの誤りです。その鍵の登録グループにインポートしてください。テーブルと一致すれば、ファームウェアの誤りです。正しいものを書き込み、インポートはしないでください。現場にそのデバイスがなければ、第三者が鍵を持っています。このサーバーの管理者に知らせてください。
unconfigured = {$devices} 台が未設定の登録グループに属しています
unconfigured-cause = このサーバーの設定に登録グループ {$names} がなく、これらのデバイスは接続できません。
unconfigured-remedy = certdist.toml に登録グループを追加して再読み込みするか、別の登録グループにデバイスをインポートしてください。
deleted-at-cloud = {$devices} 台が IoT Platform で削除されました
deleted-at-cloud-cause = IoT Platform のコンソールか API で誰かが削除しました。証明書は使えません。
deleted-at-cloud-remedy = まだ使う場合は、ここでリセットしてください。次のリクエストで同じ名前で再登録されます。
draining = サーバーは終了処理中です
draining-cause = オペレーターまたはシステムが停止しました。新しい登録は受け付けず、進行中のものを完了します。
draining-remedy = 意図したものなら対応は不要です。そうでなければサービスマネージャーのログを見てください。
unknown-devices = テーブルにない {$devices} 台が証明書を要求しています
unknown-devices-cause = リストが未インポートか、ID がリストと違うか、{$names} の鍵を持つ第三者が ID を試しています。
unknown-devices-remedy = ID を工場のリストと照合し、リストにあるものだけをインポートしてください。どの ID にも証明書は渡していません。リストにない ID があれば、第三者が鍵を持っている可能性があるため、このサーバーの管理者に知らせてください。
wrong-key = {$times} 件の接続が失敗しました：鍵の誤りまたは未知のアイデンティティ
wrong-key-cause = デバイスの鍵がこのサーバーの期待と違うか、名前（アイデンティティ）が知られていません。または第三者が鍵を試しています。
wrong-key-remedy = リンクを開き、アイデンティティとアドレスからデバイスを見つけてください。現在のファームウェアを書き込み、再試行してください。それでも失敗する場合は、アイデンティティをこのサーバーの管理者に知らせてください。ここに設定またはインポートされた鍵が異なります。現場にそのデバイスがなければ、第三者が鍵を試している可能性があると管理者に知らせてください。
advice-handshake = ハンドシェイクが失敗しました
advice-handshake-text = {$time} にこの ID をアイデンティティとするクライアントが {$address} から接続を試みました：{$reason}。このデバイスなら、登録グループ {$enrollment} のファームウェアか鍵を書き込み直してください。そうでなければ、誰かがこの ID で鍵を試しています。
guessing = 誰かがデバイス ID を試しています
guessing-cause = 共有鍵を持つクライアントが、許されない ID を次々に要求しています。このクライアントは減速され、ほかのデバイスには通常どおり発行されます。
guessing-remedy = 下のリンクで ID とアドレスを確認できます。自社の試験でなければ、共有鍵を変え、アドレスを遮断してください。
not-yours = { $devices ->
    [0] 別のデバイスの鍵での要求がありました
   *[other] {$devices} 台が別のデバイスの鍵で要求されました
}
not-yours-cause = ファームウェアが別のデバイスの ID を送っているか、誰かが他人の証明書を得ようとしています。何も発行していません。
not-yours-remedy = ファームウェアが送る ID と鍵の ID を照合してください。この種の鍵では同じデバイスでなければなりません。
issued-already = { $devices ->
    [0] 証明書の再要求がありますが、許可されていません
   *[other] {$devices} 台が証明書を再要求していますが、許可されていません
}
issued-already-cause = デバイスは以前に取得済みで、登録グループの再発行ポリシーが再発行を許しません。保存に失敗した可能性があります。
issued-already-remedy = 信頼できるデバイスなら、ここでリセットしてください。再び取得できます。
held-ask = { $devices ->
    [0] テーブルにないデバイスが承認を待っています
   *[other] テーブルにないデバイス {$devices} 台が承認を待っています
}
held-ask-cause = 登録グループは、正しい鍵を持ちテーブルにないデバイスを待たせます（unlisted = "hold"）。
held-ask-remedy = 自社のデバイスなら承認してください。certdist device waiting で一覧し、certdist device admit でテーブルに追加します。
closed-ask = { $devices ->
    [0] 終了または満員の登録グループにデバイスが要求しています
   *[other] 終了または満員の登録グループにデバイス {$devices} 台が要求しています
}
closed-ask-cause = デバイスはまだ証明書を取得しておらず、登録グループはこれ以上発行しません。closes を過ぎたか、max_devices に達しています。
closed-ask-remedy = 取得してよいデバイスなら、設定の closes を遅らせるか max_devices を増やし、再読み込みしてください。
not-open-ask = { $devices ->
    [0] 受付開始前の登録グループにデバイスが要求しています
   *[other] 受付開始前の登録グループにデバイス {$devices} 台が要求しています
}
not-open-ask-cause = デバイスはまだ証明書を取得しておらず、登録グループの受付開始は後です（設定の opens）。少なくとも 1 時間ごとに再試行するよう応答します。
not-open-ask-remedy = 今すぐ取得してよいなら、設定の opens を早め、再読み込みしてください。
malformed = {$times} 件のリクエストを理解できませんでした
malformed-cause = ファームウェアのパス、メソッド、形式、またはデバイス ID が誤っています。
malformed-remedy = 応答が誤りをファームウェアに伝えます（docs/device.md）。リクエストはログにあります。
silent-clients = デバイスが応答しなくなり {$times} 件のハンドシェイクが終了しました
silent-clients-cause = デバイスとサーバーの間でパケットが失われているか、デバイスの電源が切れました。
silent-clients-remedy = 多い場合は、無線、NAT、ファイアウォールを確認してください。UDP は双方向に通す必要があります。
other-handshakes = その他の理由で {$times} 件のハンドシェイクが失敗しました
other-handshakes-cause = 例：ファームウェアが対応する暗号スイートを持たない、または一つのネットワークの未完了ハンドシェイクが多すぎる。
other-handshakes-remedy = 理由はログと certdist_handshake_failures_total にあります。暗号スイートは docs/device.md にあります。
clock = このサーバーの時計が {$times} 秒ずれています
clock-cause = このマシンの時計は IoT Platform の時計と異なります。これらのページとログの時刻も同じだけ誤っています。呼び出しは正しい時刻で署名されます。
clock-remedy = このマシンで時刻同期（NTP）を有効にしてください。
no-cloud = {$devices} 台に証明書がなく、IoT Platform が設定されていません
no-cloud-cause = 設定に [iot_platform] がないため、テーブルに証明書のないデバイスには 5.02 を返します。
no-cloud-remedy = [iot_platform] を設定するか、証明書をインポートしてください。
unsealed = データベースに平文の秘密が {$times} 件あります
unsealed-cause = 保存時に database_key が設定されていませんでした。ファイルやバックアップを得た者は読めます。
unsealed-remedy = database_key を設定し、certdist database seal を実行してください（docs/operations.md）。
too-many = { $devices ->
    [0] リクエストが多すぎます
   *[other] {$devices} 台のリクエストが多すぎます
}
too-many-cause = {$times} 件のリクエストがレート制限を超え、4.29 で応答されました。
too-many-remedy = 繰り返し要求するデバイスはファームウェアに誤りがあります。同じアドレスから多数が一度に来るなら、制限を上げてください。
queue = {$devices} 台が登録を待っています
queue-cause = IoT Platform の登録速度を超えるデバイスが一度に来ました。
queue-remedy = 台数が減っていれば対応は不要です。各デバイスは自動で再試行し、証明書を得ます。
not-back = { $devices ->
    [0] 証明書を得られなかったデバイスが再要求していません
   *[other] 証明書を得られなかった {$devices} 台が再要求していません
}
not-back-cause = 後で再試行するよう求められたか、その後は見られない障害のために拒否されました。電源が切れているか、ファームウェアが再要求しない可能性があります。最後のメッセージがあれば下にあります。
not-back-remedy = そのうち 1 台の電源を入れ直し、このコンソールでそのページを確認してください。
unsent = {$times} 個のデータグラムを送信できませんでした
unsent-cause = このサーバーのネットワークまたはバッファーが小さすぎるか遅すぎます。デバイスはリクエストを繰り返します。
unsent-remedy = 続く場合は net.core.wmem_max を上げるか、ネットワークを増強してください。
disabled-ask = { $devices ->
    [0] 無効化されたデバイスが証明書を要求しています
   *[other] 無効化された {$devices} 台が証明書を要求しています
}
disabled-ask-cause = オペレーターがここで無効化しました。
disabled-ask-remedy = 意図したものなら対応は不要です。そうでなければ有効化してください。
disabled-at-cloud = {$devices} 台が IoT Platform で無効化されています
disabled-at-cloud-cause = IoT Platform で誰かが無効化しました。証明書はありますが、サインインできません。
disabled-at-cloud-remedy = 意図したものなら対応は不要です。そうでなければ IoT Platform で有効化してください。
title-key = IoT Platform がこのサーバーのアクセスキーを拒否しています
title-credentials = このサーバーにアクセスキーがありません
title-permission = このサーバーのアクセスキーに権限がありません
title-bill = IoT Platform のアカウントに未払いがあります
title-quota = IoT Platform は製品 {$names} のデバイスをこれ以上受け付けません
cause-key = このサーバーが使うアクセスキーを IoT Platform が受け付けません。デバイスの問題ではありません。直すまでデバイスは登録できませんが、証明書のあるデバイスには引き続き渡されます。拒否された呼び出し：{$names}。
cause-credentials = このサーバーは認証情報を読めないため、IoT Platform を呼び出せません。
cause-permission = アクセスキーの RAM ユーザーはこれらの呼び出しを許可されていません：{$names}。
cause-product = このサーバーが使う IoT Platform インスタンスに製品 {$names} がありません。デバイスの問題ではなく、ほかの製品のデバイスには影響しません。
cause-quota = 製品またはインスタンスのデバイス数が上限に達しています。登録済みのデバイスには発行されます。
-credentials-place = アクセスキーの保存場所は、certdist.toml の [iot_platform] にある credentials の行で指定されています。ファイルの変更は自動で読み込まれます。環境変数を変えたら systemctl restart certdist を実行してください。その後、デバイスは自動で再試行します。

## Remedies for codes of IoT Platform

remedy-key-unknown = このアクセスキーは存在しません。ID を直してください。よくある原因は余分な空白や別サイトのキーです。{ -credentials-place }
remedy-key-inactive = アクセスキーが無効です。RAM コンソールで有効にするか、別のキーを使ってください。{ -credentials-place }
remedy-key-secret = このサーバーの管理者に知らせてください：アクセスキー ID とアクセスキーシークレットの組み合わせが正しくなく、両方の再入力が必要です。{ -credentials-place }両方とも正しければ、このサーバーと IoT Platform の間のプロキシがリクエストを改変している可能性があります。確認してください。
remedy-token = セキュリティトークンが期限切れか、キーと一致しません。認証情報を更新してください。{ -credentials-place }
remedy-permission = アクセスキーに権限がありません。docs/cloud.md のポリシーを RAM ユーザーに付けてください。
remedy-account = アカウントは IoT Platform を使えません。有効化し、アカウントとリージョンを確認してください。
remedy-bill = アカウントに未払いがあります。支払ってください。
remedy-instance = そのリージョンにインスタンスがありません。certdist.toml の instance_id と region を直し、systemctl restart certdist を実行してください。
remedy-product = このサーバーの管理者に知らせてください。管理者は IoT Platform のコンソールで {$names} を探します。あれば：certdist.toml の instance_id が誤りです。直して systemctl restart certdist を実行してください。製品が別の productKey であれば：登録グループの product_key が誤りです。直して systemctl reload certdist を実行し、productKey 列を付けてデバイスを再インポートしてください。デバイスにはインポート時の製品が残るためです。まったくなければ：作成し、別の productKey の場合と同じように進めてください。その後、デバイスは自動で再試行します。
remedy-quota = デバイス数の上限に達しました。IoT Platform で上限を上げるか、デバイスを削除してください。
remedy-certificate = TLS：IoT Platform の証明書を受け入れられません。ca_file、時計、endpoint を確認してください。
remedy-credentials = アクセスキーを読めない理由はメッセージにあります。{ -credentials-place }
remedy-network = このサーバーの管理者に、IoT Platform へのネットワーク、DNS、ファイアウォール、プロキシの確認を依頼してください。異常がなければ、Alibaba Cloud のステータスページ（status.alibabacloud.com）を見て待ってください。デバイス側の操作は不要です。証明書のあるデバイスには引き続き渡され、ほかのデバイスは自動で再試行します。
remedy-not-an-answer = IoT Platform 以外のものが応答しています。プロキシのログインページや endpoint の誤りを確認してください。

## Import

import-file = テーブルファイル
import-file-hint = CSV または JSON 行、16 MiB まで。大きなファイルは {$command} でインポートしてください。1 行目は見出しで、必須は {$required} だけです：{$columns}
import-enrollment = 登録グループのない行の登録グループ
import-each-its-own = 各行に書かれている
import-unknown-enrollment = 設定に登録グループ {$enrollment} がありません。一覧から選んでください。
import-preview = プレビュー
import-preview-hint = 変更される内容を表示します。まだ何も変更しません。
import-operators-only = インポートはオペレーターだけができます
import-busy = ほかのファイルを処理中です。終わってから、もう一度試してください。
import-gone = ファイルはもうありません。インポート済みか、確認が遅すぎました。もう一度送ってください。
import-errors-gone = 不正な行の一覧はもうありません。ファイルをもう一度送ってください。
import-too-large = ファイルが大きすぎます
import-too-large-text = ファイルが 16 MiB を超えています。{$command} でインポートしてください。サーバーの稼働中も使えます。
import-it = インポートする
import-progress = 登録グループの進捗
import-done-no-number = ファイルをインポートしました。このインポートは取り消せません。
imported = インポートしました
imported-text = {$file}：{$time} に {$added} 台を追加、{$changed} 台を変更。
nothing-imported = 何もインポートしていません
nothing-changed-yet = まだ何も変更していません
preview-counts = {$file}：{$added} 台を追加、{$changed} 台を変更、{$unchanged} 台は変更なし。
preview-pair = {$count} 行：登録グループ {$enrollment}、製品 {$product}
preview-other-pairs = {$count} 行：その他の登録グループと製品
preview-ends = 保存される ID：先頭 {$first}、末尾 {$last}
preview-odd = インポートする前に確認してください：
preview-nothing-new = すべてテーブルにあります。
bad-lines = 不正な行
bad-lines-count = {$file} に不正な行が {$count} 行あります。直してから、もう一度送ってください。
bad-lines-download = 不正な {$count} 行をすべてダウンロード
bad-lines-line = 行
bad-lines-column = 列
bad-lines-reason = 誤りの内容と期待される値
bad-lines-more = ほかに {$line} 行目と同様の行が {$count} 行。
bad-line = 行全体の誤り
bad-device-id = デバイス ID の誤り
bad-enrollment = 登録グループの誤り
bad-product = 製品の誤り
bad-name = デバイス名の誤り
bad-secret = デバイスシークレットの誤り
bad-iotid = IotId の誤り
bad-key = 事前共有鍵またはその ID の誤り
bad-value = 値の誤り
imports-title = 直近 30 日のインポート
imports-file = ファイル
imports-time = 日時
imports-who = 実行者
imports-added = 追加
imports-changed = 変更
imports-undo = 取り消す
imports-undone = {$time} に取り消し済み
imports-more = 古いインポートは {$command} で表示できます。
undo-title = インポートの取り消し
undo-it = 取り消す
undo-the-rest = 残りを取り消す
undo-done = インポートを取り消しました
undo-removed = 追加された {$count} 台を削除します
undo-certificates = うち {$count} 台はインポートした証明書も削除します
undo-restored = 変更された {$count} 台を元の値に戻します
undo-left = {$count} 台はそのままです
undo-changed-title = その後に変わったデバイスがあります
undo-changed = {$all} 台のうち {$count} 台は、その後に登録、発行、無効化、有効化、削除、または別のインポートで変更されたか、登録中です。それらはそのままです。残りは取り消せます。
undo-left-in-table = このインポートの {$count} 台が、今の状態のままテーブルに残ります：
undo-preview-rest = 残りの取り消しをプレビュー
undo-again = すでに取り消されています。
undo-keys = {$count} 台の鍵を置き換えたか削除しました。以前の鍵は保存されていません。代わりに、元のファイルをもう一度インポートしてください。
undo-conflict = デバイス {$device} を元に戻せません：{$reason}。先にどちらかのデバイスの名前を変えてください。
undo-refused = このインポートは取り消せません
undo-unknown = そのインポートはありません
undo-unknown-text = 直近 30 日にこの番号のインポートはありません。
back = 戻る
viewer-signed-in = 閲覧者としてサインインしています。
